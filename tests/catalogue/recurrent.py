"""The entries of recurrent operations, cells and layers: torch's modules with the same weights, packed for lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

import culux
from culux import layers as L
from culux import nn
from culux.nn import gelu, relu
from tests.catalogue.case import Case, LayerCase, fixed, normal

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
TRAINED = {"train_state": "hidden_state", "train_memory": "memory"}
LENGTHS = [4, 1, 6, 3]


def torch_run(
    torch: Any, kind: str, x: Any, weights: list[dict[str, Any]], **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Torch's module of this kind with the weights of each level and direction: ``(y, carry)``."""
    lengths, carry = options.pop("lengths", None), options.pop("carry", None)
    bidirectional = options.get("bidirectional", False)
    out = weights[0]["weight_hh"].shape[1]
    with_bias = "bias_ih" in weights[0]
    module = getattr(torch.nn, kind)(x.shape[-1], out, batch_first=True, bias=with_bias, dtype=x.dtype, **options)
    suffixes = [
        f"_l{k}{way}" for k in range(options.get("num_layers", 1)) for way in ("", "_reverse")[: 1 + bidirectional]
    ]
    named = {name + suffix: w[name] for suffix, w in zip(suffixes, weights, strict=True) for name in w}
    given = x
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    start = carry if carry is None or kind == "LSTM" else carry[0]
    y, last = torch.func.functional_call(module, named, (given, start))
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    return y, last if kind == "LSTM" else (last,)


def function_case(kind: str, label: str, *, lengths: bool = False, carry: bool = False, bias: bool = True) -> Case:
    """One of the functions on x, weights and a carry; y and the last carry are compared, without biases only y."""
    function, rows = getattr(nn, kind.lower()), GATES[kind] * 3
    inputs = [normal(4, 6, 2), normal(rows, 2), normal(rows, 3)]
    inputs += [normal(rows), normal(rows)] if bias else []
    count = len(inputs)
    inputs += [normal(4, 3)] * (2 if kind == "LSTM" else 1) if carry else []

    def call(*arrays: Any) -> Any:
        start = tuple(arrays[count:]) or None
        y, last = function(*arrays[:count], carry=start, lengths=LENGTHS if lengths else None)
        return (y, last) if bias else y

    def torch_call(torch: Any, x: Any, *arrays: Any) -> Any:
        weights = [dict(zip(WEIGHTS, arrays[: count - 1], strict=False))]
        start = tuple(a[None] for a in arrays[count - 1 :]) or None
        y, last = torch_run(torch, kind, x, weights, lengths=torch.tensor(LENGTHS) if lengths else None, carry=start)
        return (y, tuple(part[0] for part in last)) if bias else y

    name = f"culux.nn.{kind.lower()}"
    return Case(name, call, inputs, torch=torch_call, label=label, tolerance=20.0, strict=not bias)


def by_hand(activation: Any, x: np.ndarray, wx: np.ndarray, wh: np.ndarray, *, steps: Any = None) -> np.ndarray:
    """A plain recurrent layer without biases in NumPy, in the order `steps`."""
    h, y = np.zeros((len(x), len(wh))), np.zeros((*x.shape[:2], len(wh)))
    for t in range(x.shape[1]) if steps is None else steps:
        h = y[:, t] = activation(x[:, t] @ wx.T + h @ wh.T)
    return y


FUNCTIONS = [
    *[function_case(kind, "sequence") for kind in GATES],
    *[function_case(kind, "lengths-carry", lengths=True, carry=True) for kind in GATES],
    *[function_case(kind, "no-bias", bias=False) for kind in GATES],
    *[function_case(kind, "no-bias-lengths", bias=False, lengths=True) for kind in GATES],
    Case(
        "culux.nn.rnn", lambda *a: nn.rnn(*a, activation=lambda z: z * z / 4, reverse=True)[0],
        [normal(2, 3, 2), normal(3, 2), normal(3, 3)], label="function-reverse", tolerance=50.0,
        reference=lambda *a: by_hand(lambda z: z * z / 4, *a, steps=[2, 1, 0]),
    ),
    Case(
        "culux.nn.rnn", lambda *a: nn.rnn(*a, activation=gelu)[0], [normal(2, 3, 2), normal(3, 2), normal(3, 3)],
        label="gelu", tolerance=20.0,
        reference=lambda *a: by_hand(
            lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))), *a
        ),
    ),
]  # fmt: skip


def entries(
    kind: str, in_dims: int, out_dims: int, prefix: str = "", *, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of a cell's parameters."""
    rows = GATES[kind] * out_dims
    found = {"weight_ih": (rows, in_dims), "weight_hh": (rows, out_dims)}
    found |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
    return {prefix + name: shape for name, shape in found.items()}


def weights_of(ps: dict[str, Any], *prefixes: str) -> list[dict[str, Any]]:
    """The parameters of the cells under these prefixes."""
    return [{p.removeprefix(prefix): w for p, w in ps.items() if p.startswith(prefix)} for prefix in prefixes]


def cell_case(
    kind: str, label: str = "", *, carry: bool = False, shape: tuple[int, ...] = (4,), **fields: Any
) -> LayerCase:
    """A cell against torch's cell: ``(y, carry)``."""
    cell = getattr(L, f"{kind}Cell")(2, 3, **fields)

    def torch_call(torch: Any, ps: dict[str, Any], x: Any) -> Any:
        y, last = torch_run(torch, kind, x.reshape(-1, 1, 2), [ps])
        return y.reshape(*shape, 3), tuple(part[0].reshape(*shape, 3) for part in last)

    return LayerCase(
        f"culux.layers.{kind}Cell", cell, [normal(*shape, 2)], label=label, tolerance=5.0, torch=torch_call,
        parameters=entries(kind, 2, 3, bias=fields.get("use_bias", True)),
    )  # fmt: skip


def trained_case(kind: str, **flags: bool) -> LayerCase:
    """All steps of a cell whose first carry is trained."""
    cell = getattr(L, f"{kind}Cell")(2, 3, **flags)
    names = list(TRAINED.values())[: 2 if kind == "LSTM" else 1]

    def torch_call(torch: Any, ps: dict[str, Any], x: Any) -> Any:
        starts = [ps.get(name, torch.zeros(3, dtype=x.dtype)) for name in names]
        start = tuple(part.expand(1, 4, 3).contiguous() for part in starts)
        return torch_run(torch, kind, x, [{name: ps[name] for name in WEIGHTS}], carry=start)[0]

    return LayerCase(
        f"culux.layers.{kind}Cell", L.Recurrence(cell, return_sequence=True), [normal(4, 6, 2)],
        label="-".join(flags), tolerance=10.0, torch=torch_call,
        parameters=entries(kind, 2, 3) | {TRAINED[flag]: (3,) for flag in flags},
    )  # fmt: skip


CELLS = [
    *[cell_case(kind) for kind in GATES],
    trained_case("LSTM", train_state=True, train_memory=True),
    trained_case("LSTM", train_memory=True),
    trained_case("GRU", train_state=True),
    cell_case("LSTM", "no-bias-1d", shape=(), use_bias=False),
    cell_case("GRU", "3d", shape=(2, 3)),
    LayerCase(
        "culux.layers.RNNCell", L.RNNCell(2, 3, relu), [normal(4, 2)], label="relu", tolerance=5.0,
        parameters=entries("RNN", 2, 3),
        torch=lambda t, ps, x: (
            (y := t.relu(x @ ps["weight_ih"].T + ps["bias_ih"] + ps["bias_hh"])), (y,)
        ),
    ),
]  # fmt: skip


class Leaky(culux.Layer):
    """A cell of a user: ``h' = 0.5 h + x * gain``, its carry one array."""

    def initial_parameters(self, rng: Any) -> Any:
        return {"gain": np.ones(2, np.float32)}

    def initial_states(self, rng: Any) -> Any:
        return {"steps": 0}

    def output_shape(self, input_shape: Any) -> Any:
        return input_shape, input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> Any:
        x, h = x if isinstance(x, tuple) else (x, None)
        y = x * ps.gain if h is None else 0.5 * h + x * ps.gain
        return (y, y), st.replace(steps=st.steps + 1)


def leaky(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """All steps of `Leaky`, as one sum."""
    times = np.arange(x.shape[1])
    decay = np.where(times[:, None] >= times, 0.5 ** np.maximum(times[:, None] - times, 0), 0)
    return np.einsum("ts,bsf->btf", decay, x * gain)


def two_steps(x: Any, *leaves: Any) -> Any:
    """Two calls of a stateful cell; its carry is cut from the tape between them."""
    layer = L.StatefulRecurrentCell(L.LSTMCell(2, 3))
    st = culux.initial_states(0, layer)
    ps = culux.Tree(dict(zip(WEIGHTS, leaves, strict=True)))
    first, st = layer(x[:, 0], ps, st)
    return first, layer(x[:, 1], ps, st)[0]


def two_steps_of_torch(torch: Any, x: Any, *leaves: Any) -> Any:
    weights = [dict(zip(WEIGHTS, leaves, strict=True))]
    first, carry = torch_run(torch, "LSTM", x[:, :1], weights)
    second, _ = torch_run(torch, "LSTM", x[:, 1:], weights, carry=tuple(part.detach() for part in carry))
    return first[:, 0], second[:, 0]


BOTH = ("forward_rnn.", "backward_rnn.")

SEQUENCES = [
    *[
        LayerCase(
            "culux.layers.Recurrence", L.Recurrence(getattr(L, f"{kind}Cell")(2, 3), return_sequence=whole),
            [normal(4, 6, 2)], label=f"{kind}-{whole}", parameters=entries(kind, 2, 3), tolerance=10.0,
            torch=lambda t, ps, x, kind=kind, whole=whole: (
                torch_run(t, kind, x, [ps])[0] if whole else torch_run(t, kind, x, [ps])[0][:, -1]
            ),
        )
        for kind in GATES for whole in (False, True)
    ],
    LayerCase(
        "culux.layers.Recurrence", L.Recurrence(Leaky(), return_sequence=True), [normal(3, 4, 2)], label="own-cell",
        parameters={"gain": (2,)}, states=("steps",), reference=lambda ps, st, x: leaky(x, ps.gain), tolerance=5.0,
    ),
    Case(
        "culux.layers.StatefulRecurrentCell", two_steps,
        [normal(4, 2, 2), normal(12, 2), normal(12, 3), normal(12), normal(12)], torch=two_steps_of_torch,
        tolerance=10.0, smooth=False, why="no gradient goes through the state: differences see it",
    ),
    LayerCase(
        "culux.layers.BidirectionalRNN", L.BidirectionalRNN(L.LSTMCell(2, 3)), [normal(4, 6, 2)], tolerance=10.0,
        parameters=entries("LSTM", 2, 3, BOTH[0]) | entries("LSTM", 2, 3, BOTH[1]),
        torch=lambda t, ps, x: torch_run(t, "LSTM", x, weights_of(ps, *BOTH), bidirectional=True)[0],
    ),
    LayerCase(
        "culux.layers.BidirectionalRNN", L.BidirectionalRNN(L.GRUCell(2, 3), merge=np.add), [normal(4, 6, 2)],
        label="sum", tolerance=10.0, parameters=entries("GRU", 2, 3, BOTH[0]) | entries("GRU", 2, 3, BOTH[1]),
        torch=lambda t, ps, x: sum(torch_run(t, "GRU", x, weights_of(ps, *BOTH), bidirectional=True)[0].split(3, -1)),
    ),
    LayerCase(
        "culux.layers.BidirectionalRNN", L.BidirectionalRNN(L.RNNCell(2, 3, relu, use_bias=False), Leaky(), merge=None),
        [normal(2, 3, 2)], label="tuple-own-cell", states=("backward_rnn.steps",), tolerance=10.0,
        parameters=entries("RNN", 2, 3, BOTH[0], bias=False) | {"backward_rnn.gain": (2,)},
        reference=lambda ps, st, x: (
            by_hand(lambda z: np.maximum(z, 0), x, ps.forward_rnn.weight_ih, ps.forward_rnn.weight_hh),
            leaky(x[:, ::-1], ps.backward_rnn.gain)[:, ::-1],
        ),
    ),
]  # fmt: skip


def stacked_case(kind: str, label: str, *, lengths: bool = False, **fields: Any) -> LayerCase:
    """A stacked layer against torch's of the same fields."""
    levels, both = fields.get("num_layers", 1), fields.get("bidirectional", False)
    prefixes = [f"layer_{k + 1}.{way}" for k in range(levels) for way in (BOTH if both else ("",))]
    parameters: dict[str, tuple[int, ...]] = {}
    for prefix in prefixes:
        width = 2 if prefix.startswith("layer_1.") else 3 * (1 + both)
        parameters |= entries(kind, width, 3, prefix, bias=fields.get("use_bias", True))
    options = {name: fields[name] for name in ("num_layers", "bidirectional") if name in fields}

    def torch_call(torch: Any, ps: dict[str, Any], x: Any, n: Any = None) -> Any:
        y, carry = torch_run(torch, kind, x, weights_of(ps, *prefixes), lengths=n, **options)
        return (y, carry) if fields.get("return_carry") else y

    dropped = [f"dropout_{k}" for k in range(1, levels)] if "dropout" in fields else []
    inputs = [normal(4, 6, 2), fixed(LENGTHS)] if lengths else [normal(4, 6, 2)]
    return LayerCase(
        f"culux.layers.{kind}", getattr(L, kind)(2, 3, **fields), inputs,
        parameters=parameters, torch=torch_call, label=label, tolerance=20.0, test_mode="dropout" in fields,
        states=tuple(f"{name}.{entry}" for name in dropped for entry in ("rng.key", "rng.counter", "training")),
    )  # fmt: skip


STACKED = [
    *[stacked_case(kind, "") for kind in GATES],
    *[
        stacked_case(
            kind, "levels-both-lengths-carry", lengths=True, num_layers=2, bidirectional=True, return_carry=True,
            dropout=0.4,
        )
        for kind in GATES
    ],
    stacked_case("LSTM", "levels-no-bias", num_layers=3, use_bias=False),
    stacked_case("GRU", "lengths", lengths=True),
]  # fmt: skip

LAYERS = [*CELLS, *SEQUENCES, *STACKED]
