"""The entries of `culux.nn`: activations, dense, normalisation, softmax, dropout, embedding and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

import culux
from culux import nn
from tests.catalogue import (
    adaptive_pools,
    attention,
    combining,
    conv,
    dropouts,
    group_norms,
    options,
    recurrent,
    resampling,
)
from tests.catalogue.case import Case, apart, fixed, integers, nonzero, normal, uniform

WITHOUT_ENTRY = {
    "Activation": "the base class of the records; tests/test_activations.py",
    "ActivationLike": "a type alias",
    "activate": "what calling a record does: every activation proves it",
    "Celu": "the class of celu, proved by its variant",
    "Elu": "the class of elu, proved by its variant",
    "LeakyRelu": "the class of leakyrelu, proved by its variant",
    "SoftShrink": "the class of softshrink, proved by its variant",
    "Trelu": "the class of trelu, proved by its variant",
}

KINKS = nonzero(5, 7, kinks=(-3, -1, -0.5, 0, 0.5, 1, 3, 6))
SMOOTH = normal(5, 7, scale=3)


def activation(name: str, torch: Any, inputs: Any, *, record: Any = None, label: str = "", **rest: Any) -> Case:
    """An activation against torch's function, or a formula in it."""
    record = record or getattr(nn, name)
    return Case(f"culux.nn.{name}", lambda x: record(x), [inputs], torch=torch, label=label, strict=True, **rest)


def functional(name: str, inputs: Any, *, torch: str | None = None, **rest: Any) -> Case:
    """An activation that torch.nn.functional has."""
    return activation(name, lambda t, x: getattr(t.nn.functional, torch or name)(x), inputs, **rest)


ACTIVATIONS = [
    activation("identity", lambda t, x: x * 1, SMOOTH),
    functional("relu", KINKS),
    functional("relu6", KINKS),
    functional("leakyrelu", KINKS, torch="leaky_relu"),
    activation(
        "leakyrelu", lambda t, x: t.nn.functional.leaky_relu(x, 1.5), KINKS, record=nn.LeakyRelu(1.5), label="steep"
    ),
    functional("elu", KINKS),
    activation("elu", lambda t, x: t.nn.functional.elu(x, 0.4), KINKS, record=nn.Elu(0.4), label="alpha"),
    functional("selu", KINKS),
    functional("celu", KINKS),
    activation("celu", lambda t, x: t.nn.functional.celu(x, 2.0), KINKS, record=nn.Celu(2.0), label="alpha"),
    activation("gelu", lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), SMOOTH),
    functional("gelu_erf", SMOOTH, torch="gelu", cupy=False, why="the stand-in has no cupyx.scipy"),
    functional("swish", SMOOTH, torch="silu"),
    functional("hardswish", KINKS),
    functional("mish", SMOOTH),
    functional("sigmoid", SMOOTH),
    functional("hardsigmoid", KINKS, tolerance=1e3, why="torch has 1/6 in float32"),
    functional("logsigmoid", SMOOTH),
    functional("tanh", SMOOTH),
    functional("hardtanh", KINKS),
    functional("tanhshrink", SMOOTH),
    functional("softplus", normal(5, 7, scale=3)),
    functional("softsign", nonzero(5, 7)),
    functional("softshrink", KINKS),
    activation(
        "softshrink", lambda t, x: t.nn.functional.softshrink(x, 3.0), KINKS, record=nn.SoftShrink(3.0), label="wide"
    ),
    activation("lisht", lambda t, x: x * t.tanh(x), SMOOTH),
    activation("logcosh", lambda t, x: t.log(t.cosh(x)), SMOOTH),
    activation("trelu", lambda t, x: t.nn.functional.threshold(x, 1, 0), KINKS),
    activation("trelu", lambda t, x: t.nn.functional.threshold(x, 3, 0), KINKS, record=nn.Trelu(3.0), label="high"),
]


def dense_case(label: str, shape: tuple[int, ...], record: Any, torch: Any, *, bias: bool = True, **rest: Any) -> Case:
    """Dense against torch's linear."""
    return Case(
        "culux.nn.dense",
        lambda x, w, *b: nn.dense(x, w, *b, activation=record),
        [normal(*shape), normal(4, shape[-1]), *([normal(4)] if bias else [])],
        torch=lambda t, x, w, *b: torch(t)(t.nn.functional.linear(x, w, *b)),
        label=label,
        strict=True,
        **rest,
    )


DENSE = [
    dense_case("identity", (5, 3), nn.identity, lambda t: lambda z: z * 1),
    dense_case("saves-y", (5, 3), nn.tanh, lambda t: t.tanh),
    dense_case("saves-x", (5, 3), nn.gelu, lambda t: lambda z: t.nn.functional.gelu(z, approximate="tanh")),
    dense_case("vector", (3,), nn.tanh, lambda t: t.tanh),
    dense_case("sequences", (2, 5, 3), nn.sigmoid, lambda t: t.sigmoid),
    dense_case("no-bias", (5, 3), nn.swish, lambda t: t.nn.functional.silu, bias=False),
    dense_case("function", (5, 3), lambda z: culux.numpy.sin(z), lambda t: t.sin),
]


def batchnorm_case(
    label: str, shape: tuple[int, ...], *, affine: bool = True, training: bool = True, **rest: Any
) -> Case:
    """The output of batchnorm against torch's; its running statistics are tested by hand."""
    channels = shape[1]
    running = (np.linspace(-1, 1, channels), np.linspace(0.5, 2, channels))
    act = rest.pop("activation", nn.identity)
    torch_act = rest.pop("torch_activation", lambda t: lambda z: z * 1)

    def call(x: Any, *affine_parameters: Any) -> Any:
        stats = [_beside(r, x) for r in running]
        return nn.batchnorm(x, *(affine_parameters or (None, None)), *stats, training=training, activation=act)[0]

    def torch(t: Any, x: Any, *affine_parameters: Any) -> Any:
        stats = [t.tensor(r, dtype=x.dtype) for r in running]
        return torch_act(t)(t.nn.functional.batch_norm(x, *stats, *affine_parameters, training=training))

    inputs = [normal(*shape), *([normal(channels), normal(channels)] if affine else [])]
    return Case("culux.nn.batchnorm", call, inputs, torch=torch, label=label, strict=True, **rest)


def _beside(values: np.ndarray, x: Any) -> Any:
    """Values where `x` is, in its dtype."""
    array = culux.stop_gradient(x)
    backend = culux.backends.backend_of(array)
    return backend.from_host(values.astype(str(array.dtype).rpartition(".")[2]), 0)


TANH = {"activation": nn.tanh, "torch_activation": lambda t: t.tanh}
GELU = {"activation": nn.gelu, "torch_activation": lambda t: lambda z: t.nn.functional.gelu(z, approximate="tanh")}
BATCHNORM = [
    batchnorm_case("matrix", (6, 3)),
    batchnorm_case("matrix-saves-y", (6, 3), **TANH),
    batchnorm_case("matrix-saves-x", (6, 3), **GELU),
    batchnorm_case("images", (3, 2, 2, 4), **TANH),
    batchnorm_case("one-image", (1, 2, 3, 2)),
    batchnorm_case("no-affine", (4, 2, 3), affine=False),
    batchnorm_case("test-mode", (4, 3), training=False, **TANH),
    batchnorm_case("test-mode-images", (2, 3, 2, 2), training=False),
    batchnorm_case("test-mode-no-affine", (4, 3), training=False, affine=False),
]


def layernorm_case(label: str, shape: tuple[int, ...], ndim: int, *, affine: bool = True, **rest: Any) -> Case:
    """Layernorm against torch's."""
    trailing = shape[-ndim:]
    act = rest.pop("activation", nn.identity)
    torch_act = rest.pop("torch_activation", lambda t: lambda z: z * 1)
    return Case(
        "culux.nn.layernorm",
        lambda x, *p: nn.layernorm(x, *(p or (None, None)), ndim=ndim, activation=act),
        [normal(*shape), *([normal(*trailing), normal(*trailing)] if affine else [])],
        torch=lambda t, x, *p: torch_act(t)(t.nn.functional.layer_norm(x, trailing, *p)),
        label=label,
        strict=True,
        **rest,
    )


LAYERNORM = [
    layernorm_case("last-axis", (3, 5), 1),
    layernorm_case("saves-y", (3, 5), 1, **TANH),
    layernorm_case("saves-x", (3, 5), 1, **GELU),
    layernorm_case("two-axes", (2, 3, 4), 2, **TANH),
    layernorm_case("no-affine", (2, 3, 4), 1, affine=False),
]


def rmsnorm_case(label: str, shape: tuple[int, ...], ndim: int, *, scale: bool = True, **rest: Any) -> Case:
    """Rmsnorm against torch's."""
    trailing = shape[-ndim:]
    act = rest.pop("activation", nn.identity)
    torch_act = rest.pop("torch_activation", lambda t: lambda z: z * 1)
    return Case(
        "culux.nn.rmsnorm",
        lambda x, *p: nn.rmsnorm(x, *(p or (None,)), ndim=ndim, activation=act),
        [normal(*shape), *([normal(*trailing)] if scale else [])],
        torch=lambda t, x, *p: torch_act(t)(t.nn.functional.rms_norm(x, trailing, *p)),
        label=label,
        strict=True,
        **rest,
    )


RMSNORM = [
    rmsnorm_case("last-axis", (3, 5), 1),
    rmsnorm_case("saves-y", (3, 5), 1, **TANH),
    rmsnorm_case("saves-x", (3, 5), 1, **GELU),
    rmsnorm_case("two-axes", (2, 3, 4), 2, **TANH),
    rmsnorm_case("no-scale", (2, 3, 4), 1, scale=False),
]


def cross_entropy(label: str, inputs: list[Any], **rest: Any) -> Case:
    """The loss per example against torch's cross entropy."""
    smoothing, ignore = rest.pop("label_smoothing", 0.0), rest.pop("ignore_index", None)
    return Case(
        "culux.nn.softmax_cross_entropy",
        lambda z, t: nn.softmax_cross_entropy(z, t, label_smoothing=smoothing, ignore_index=ignore),
        inputs,
        torch=lambda torch, z, t: torch.nn.functional.cross_entropy(
            z, t, label_smoothing=smoothing, reduction="none", ignore_index=-100 if ignore is None else ignore
        ),
        label=label,
        strict=True,
        **rest,
    )


SOFTMAX = [
    Case("culux.nn.softmax", nn.softmax, [SMOOTH], torch=lambda t, x: t.softmax(x, -1), strict=True),
    Case(
        "culux.nn.softmax", lambda x: nn.softmax(x, axis=1), [normal(2, 3, 4)],
        torch=lambda t, x: t.softmax(x, 1), label="axis", strict=True,
    ),
    Case("culux.nn.log_softmax", nn.log_softmax, [SMOOTH], torch=lambda t, x: t.log_softmax(x, -1), strict=True),
    Case("culux.nn.logsumexp", nn.logsumexp, [SMOOTH], torch=lambda t, x: t.logsumexp(x, -1), strict=True),
    Case(
        "culux.nn.logsumexp", lambda x: nn.logsumexp(x, axis=0, keepdims=True), [SMOOTH],
        torch=lambda t, x: t.logsumexp(x, 0, keepdim=True), label="keepdims", strict=True,
    ),
    Case(
        "culux.nn.one_hot", lambda i: nn.one_hot(i, 5), [integers(5, 4, 3)],
        torch=lambda t, i: t.nn.functional.one_hot(i, 5).float(), dtypes=("float32",),
        differentiable=(), why="integers have no gradient", strict=True,
    ),
    cross_entropy("labels", [SMOOTH, integers(7, 5)]),
    cross_entropy("smoothing", [SMOOTH, integers(7, 5)], label_smoothing=0.1),
    cross_entropy("images", [normal(2, 3, 4, 2), integers(3, 2, 4, 2)], label_smoothing=0.2),
    cross_entropy("ignored", [SMOOTH, fixed([0, -100, 6, -100, 3])], ignore_index=-100, label_smoothing=0.1),
    cross_entropy("probabilities", [SMOOTH, uniform(0, 1, 5, 7)]),
    cross_entropy("probabilities-images", [normal(2, 3, 4), uniform(0, 1, 2, 3, 4)], label_smoothing=0.1),
]  # fmt: skip

_STATE = culux.Tree(key=np.array([1, 2], np.uint64), counter=np.array([3, 0, 0, 0], np.uint64))


def dropped(x: np.ndarray, p: float) -> np.ndarray:
    """Dropout by NumPy's own Philox."""
    numbers = np.random.Generator(np.random.Philox(key=_STATE.key, counter=_STATE.counter)).random(x.size, np.float32)
    return np.where(numbers.reshape(x.shape) >= np.float32(p), x / (1 - p), 0)


DROPOUT = [
    Case(
        "culux.nn.dropout", lambda x: nn.dropout(x, _STATE, p=0.4, training=True)[0], [SMOOTH],
        reference=lambda x: dropped(x, 0.4),
    ),
    Case(
        "culux.nn.dropout", lambda x: nn.dropout(x, _STATE, p=0.4, training=False)[0], [SMOOTH],
        reference=lambda x: x, label="test-mode",
    ),
]  # fmt: skip

EMBEDDING = [
    Case(
        "culux.nn.embedding", lambda w, i: nn.embedding(i, w), [normal(7, 3), integers(7, 4, 5)],
        torch=lambda t, w, i: t.nn.functional.embedding(i, w),
    ),
]  # fmt: skip


def pool_case(label: str, kind: str, shape: tuple[int, ...], **windows: Any) -> Case:
    """A pool against torch's of as many axes."""
    theirs = f"{'max' if kind == 'max' else 'avg'}_pool{len(shape) - 2}d"
    window = windows.pop("window")
    return Case(
        f"culux.nn.{kind}pool",
        lambda x: getattr(nn, f"{kind}pool")(x, window, **windows),
        [apart(*shape) if kind == "max" else normal(*shape)],
        torch=lambda t, x: getattr(t.nn.functional, theirs)(x, window, **windows),
        label=label,
    )


POOLING = [
    pool_case(label, kind, shape, **windows)
    for kind in ("max", "mean")
    for label, shape, windows in (
        ("images", (2, 3, 7, 6), {"window": 2}),
        ("overlap", (1, 2, 5, 7), {"window": (3, 2), "stride": 2, "padding": 1}),
        ("one-axis", (2, 2, 9), {"window": 3, "stride": 1}),
        ("three-axes", (1, 2, 4, 3, 5), {"window": 2, "stride": (2, 1, 3)}),
    )
] + [
    pool_case("dilated", "max", (1, 2, 7, 8), window=(3, 2), stride=2, padding=1, dilation=(2, 3)),
    Case(
        "culux.nn.meanpool",
        lambda x: nn.meanpool(x, (3, 2), stride=(2, 1), dilation=(2, 3)),
        [normal(2, 2, 7, 6)],
        reference=lambda x: (
            sum(x[:, :, 2 * i : 2 * i + 3 : 2, 3 * j : 3 * j + 3] for i in range(3) for j in (0, 1)) / 6
        ),
        label="dilated",
    ),
]

CASES = [
    *ACTIVATIONS,
    *DENSE,
    *BATCHNORM,
    *LAYERNORM,
    *RMSNORM,
    *SOFTMAX,
    *DROPOUT,
    *EMBEDDING,
    *POOLING,
    *conv.FUNCTIONS,
    *group_norms.FUNCTIONS,
    *adaptive_pools.FUNCTIONS,
    *recurrent.FUNCTIONS,
    *resampling.FUNCTIONS,
    *dropouts.FUNCTIONS,
    *combining.FUNCTIONS,
    *attention.FUNCTIONS,
    *options.FUNCTIONS,
]
