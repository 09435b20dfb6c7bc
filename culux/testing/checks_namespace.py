"""What culux computes with an array library, against NumPy: functions, operators, and a small model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux import tree
from culux.autodiff import value_and_gradient
from culux.backends import Backend, is_array
from culux.core import setup
from culux.errors import describe
from culux.layers import Chain, Dense, LayerNorm
from culux.nn import relu, tanh
from culux.optim import Momentum
from culux.optim import setup as optim_setup
from culux.optim import update as optim_update
from culux.testing.compare import TOLERANCE, mismatches

__all__ = ["model_problems", "namespace_problems", "operator_problems", "optim_problems", "traced_problems"]

_ELEMENTWISE = (
    "abs ceil cos cosh exp expm1 floor isfinite isinf isnan log log10 log1p log2 negative sign sin sinh sqrt square "
    "tan tanh trunc"
).split()
_PAIRS = "add divide equal greater less logaddexp maximum minimum multiply not_equal pow subtract".split()
_REDUCTIONS = "all any argmax max mean min prod sum".split()

_Call = Callable[[Any, Any, Any], Any]
"""``call(xp, x, y)`` of two float32 matrices with positive elements."""

_OTHERS: Mapping[str, _Call] = {
    "arange": lambda xp, x, y: xp.arange(5),
    "argsort": lambda xp, x, y: xp.argsort(x, axis=-1),
    "asarray": lambda xp, x, y: xp.asarray([1.0, 2.0], dtype=xp.float32),
    "broadcast_to": lambda xp, x, y: xp.broadcast_to(x[0, :], (5, 4)),
    "clip": lambda xp, x, y: xp.clip(x, 0.5, 1.0),
    "concat": lambda xp, x, y: xp.concat((x, y), axis=1),
    "expand_dims": lambda xp, x, y: xp.expand_dims(x, axis=1),
    "flip": lambda xp, x, y: xp.flip(x, axis=0),
    "full": lambda xp, x, y: xp.full((2, 3), 1.5, dtype=xp.float32),
    "full_like": lambda xp, x, y: xp.full_like(x, 1.5),
    "matmul": lambda xp, x, y: xp.matmul(x, xp.permute_dims(y, (1, 0))),
    "moveaxis": lambda xp, x, y: xp.moveaxis(x, 0, 1),
    "ones": lambda xp, x, y: xp.ones((2, 3), dtype=xp.float32),
    "ones_like": lambda xp, x, y: xp.ones_like(x),
    "permute_dims": lambda xp, x, y: xp.permute_dims(x, (1, 0)),
    "reshape": lambda xp, x, y: xp.reshape(x, (2, -1)),
    "sort": lambda xp, x, y: xp.sort(x, axis=-1),
    "stack": lambda xp, x, y: xp.stack((x, y), axis=1),
    "take": lambda xp, x, y: xp.take(x, xp.asarray([2, 0]), axis=0),
    "where": lambda xp, x, y: xp.where(x > y, x, 0.0),
    "zeros": lambda xp, x, y: xp.zeros((2, 3), dtype=xp.float32),
    "zeros_like": lambda xp, x, y: xp.zeros_like(x),
}
_OLD_NAMES: Mapping[str, tuple[str, ...]] = {
    "concat": ("concatenate",),
    "permute_dims": ("transpose",),
    "pow": ("power",),
}

_OPERATORS: Mapping[str, _Call] = {
    "x + y": lambda xp, x, y: x + y,
    "x - y": lambda xp, x, y: x - y,
    "x * y": lambda xp, x, y: x * y,
    "x / y": lambda xp, x, y: x / y,
    "x ** 2": lambda xp, x, y: x**2,
    "-x": lambda xp, x, y: -x,
    "abs(x)": lambda xp, x, y: abs(x),
    "2 - x": lambda xp, x, y: 2 - x,
    "1.5 / x": lambda xp, x, y: 1.5 / x,
    "x > y": lambda xp, x, y: x > y,
    "x <= 1": lambda xp, x, y: x <= 1,
    "~(x > y)": lambda xp, x, y: ~(x > y),
    "(x > 1) & (y > 1)": lambda xp, x, y: (x > 1) & (y > 1),
    "x @ y.T": lambda xp, x, y: x @ y.T,
    "x[1]": lambda xp, x, y: x[1, :],
    "x[..., 1:]": lambda xp, x, y: x[..., 1:],
    "x[::2, ::-1]": lambda xp, x, y: x[::2, ::-1],
    "x[:, None]": lambda xp, x, y: x[:, None, :],
    "x + x[:1, :]": lambda xp, x, y: x + x[:1, :],
}


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(0.2, 2, (3, 4)).astype(np.float32) for _ in range(2))
    return x, y


def _of(name: str, count: int, **static: Any) -> _Call:
    """The function `name` of a namespace, of the first `count` arrays."""
    return lambda xp, *arrays: getattr(xp, name)(*arrays[:count], **static)


def _calls() -> dict[str, _Call]:
    one = {name: _of(name, 1) for name in _ELEMENTWISE}
    two = {name: _of(name, 2) for name in _PAIRS}
    reductions = {name: _of(name, 1, axis=1, keepdims=True) for name in _REDUCTIONS}
    return dict(sorted({**one, **two, **reductions, **_OTHERS}.items()))


def namespace_problems(backend: Backend, tolerance: float) -> Iterator[str]:
    """What to say of functions that the namespace lacks, or that give something else than NumPy's."""
    calls = {name: call for name, call in _calls().items() if _has(backend.xp, name)}
    missing = [name for name in _calls() if name not in calls]
    if missing:
        yield f"expected xp.{', xp.'.join(missing)}, got no such functions"
    yield from _call_problems(backend, calls, _Names(backend.xp), tolerance, "xp.")


def operator_problems(backend: Backend, tolerance: float) -> Iterator[str]:
    """What to say of operators and indices that give something else than NumPy's."""
    yield from _call_problems(backend, _OPERATORS, backend.xp, tolerance, "")


def traced_problems(backend: Backend, tolerance: float) -> Iterator[str]:
    """What to say of operators that do not leave a traced array on their right to its own operators."""
    for name in ("x + y", "x - y", "x * y", "x / y", "x @ y.T"):
        call = _OPERATORS[name]
        results = []
        for x, y in (_inputs(), _there(backend, _inputs())):
            try:
                results.append(value_and_gradient(functools.partial(_mean, call, x), y))
            except Exception as error:  # as above
                yield f"{name} with y traced: expected its value, got {error.__cause__ or error!r}"
                break
        else:
            lines = mismatches(results[1], results[0], tolerance * TOLERANCE["float32"])
            yield from (f"{name} with y traced: {line}" for line in lines)


def _mean(call: _Call, x: Any, y: Any) -> Any:
    return cnp.mean(call(None, x, y))


def _has(xp: Any, name: str) -> bool:
    return any(hasattr(xp, known) for known in (name, *_OLD_NAMES.get(name, ())))


class _Names:
    """A namespace with the standard's names for functions that it has under an older one."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        found = next((known for known in (name, *_OLD_NAMES.get(name, ())) if hasattr(self._xp, known)), name)
        return getattr(self._xp, found)


def _call_problems(
    backend: Backend, calls: Mapping[str, _Call], xp: Any, tolerance: float, prefix: str
) -> Iterator[str]:
    hosts = _inputs()
    arrays = [backend.from_host(host, 0) for host in hosts]
    for name, call in calls.items():
        expected = call(np, *hosts)
        try:
            found = call(xp, *arrays)
        except Exception as error:  # whatever a library raises, the others are of interest too
            yield f"{prefix}{name}: expected {describe(expected)}, got {type(error).__name__}: {error}"
            continue
        if not isinstance(found, (*backend.array_types, np.generic)):
            yield f"{prefix}{name}: expected an array of the backend, got {type(found).__name__}"
            continue
        host = backend.to_host(found) if isinstance(found, backend.array_types) else np.asarray(found)
        if host.dtype != expected.dtype:
            yield f"{prefix}{name}: expected {expected.dtype}, got {host.dtype}"
        yield from (f"{prefix}{name}: {line}" for line in mismatches(host, expected, tolerance * TOLERANCE["float32"]))


def _there(backend: Backend, values: Any) -> Any:
    return tree.map(lambda leaf: backend.from_host(leaf, 0) if is_array(leaf) else leaf, values)


def _trained(place: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Value, gradient and parameters of a small model, where `place` puts its arrays."""
    rng = np.random.default_rng(0)
    batch = tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (5, 2)))
    model = Chain(Dense(3, 4, tanh), LayerNorm((4,)), Dense(4, 4, relu), Dense(4, 2))
    ps, st = place(setup(0, model))
    x, y = place(batch)
    value, (slopes, _) = value_and_gradient(lambda ps, x: cnp.mean((model(x, ps, st)[0] - y) ** 2), ps, x)
    return value, slopes, ps


def model_problems(backend: Backend, tolerance: float) -> Iterator[str]:
    """What to say of a small model whose value, gradient or step of descent is not NumPy's."""
    results = []
    for place in (lambda values: values, lambda values: _there(backend, values)):
        value, slopes, ps = _trained(place)
        results.append({"value": value, "gradient": slopes, "step": tree.map(lambda p, g: p - 0.1 * g, ps, slopes)})
    expected, found = results
    yield from mismatches(found, expected, tolerance * TOLERANCE["float32"])


def optim_problems(backend: Backend, tolerance: float) -> Iterator[str]:
    """What to say of steps of `culux.optim.Momentum` that are not NumPy's."""
    results = []
    for place in (lambda values: values, lambda values: _there(backend, values)):
        _, slopes, ps = _trained(place)
        state = optim_setup(Momentum(0.1, 0.9), ps)
        for _ in range(3):
            state, ps = optim_update(state, ps, slopes)
        results.append(ps)
    expected, found = results
    yield from mismatches(found, expected, tolerance * TOLERANCE["float32"])
