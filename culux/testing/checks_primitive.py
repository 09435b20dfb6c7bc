"""`check_primitive`: a function with a derivative of its own, checked against its values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux import tree
from culux.autodiff import vjp
from culux.autodiff.tracer import Operation
from culux.backends import Backend, get_backend, is_array, is_float_array
from culux.core.convert import convert
from culux.devices import to_numpy
from culux.errors import DeviceError, DifferentiationError, describe
from culux.testing.compare import TOLERANCE, as_host, checked_dtypes, is_float, mismatches
from culux.testing.derivatives import directional, gradients, pullback_problems, scalar, slope_problems, weights
from culux.testing.leaks import holders, watched_traces
from culux.testing.report import CheckReport, Checks, LeftOut

__all__ = ["check_primitive"]

NO_FLOATS = "no argument is a float array"
NO_WIDE = "central differences are taken in float64, which is not among dtypes"


def check_primitive(
    f: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    second_order: bool = True,
    dtypes: Sequence[str] = ("float16", "float32", "float64"),
    tolerance: float = 1.0,
    **static: Any,
) -> CheckReport:
    """Check a primitive, a `culux.custom_gradient` function, or any differentiable function of arrays.

    That is: a call changes none of its arguments and gives the same again, and under a trace; the derivative with
    respect to each float argument alone is that of central differences in float64, of first and second order, and with
    respect to all together the same; a rule returns None for what it is not asked for; a pullback is linear, can be
    called twice, and writes neither to the arguments nor to the cotangent; floats keep their dtype, and cotangents
    have that of their argument; every implementation that is registered for a backend does what the portable one does.

    Args:
        f: the function.
        *args: its arguments: arrays, of which the float ones are differentiated, and numbers. A few elements are
            enough. Keep them away from kinks, where central differences are no gradient.
        reference: the same in plain NumPy and float64, called with `args` alone.
        second_order: whether gradients of gradients are compared with central differences.
        dtypes: the float dtypes that the function takes and keeps.
        tolerance: a factor on all tolerances.
        **static: what `f` gets by keyword.

    Returns:
        What was checked and what was left out, with the reason.

    Raises:
        CheckError: where a check fails (an AssertionError); it lists every one: expected, actual, the argument and
            the index of its worst element, and what to do.
        DifferentiationError: for an `f` that is no function.
        DTypeError: for `dtypes` that are no floats, or none.
    """
    if not callable(f):
        raise DifferentiationError(f"expected a function, got {describe(f)}; check_primitive(f, x, y, axis=0)")
    checks = Checks(f"check_primitive({getattr(f, '__name__', repr(f))})")
    case = _Case(checks, f, to_numpy(list(args)), static, checked_dtypes(dtypes), tolerance)
    _check_call(case, reference)
    _check_trace(case)
    _check_gradients(case, second_order)
    _check_pullback(case)
    _check_rule(case)
    _check_dtypes(case)
    _check_implementations(case)
    return checks.report()


@dataclass(frozen=True)
class _Case:
    """A function, its arguments, and what is asked of it."""

    checks: Checks
    f: Callable[..., Any]
    args: list[Any]
    static: dict[str, Any]
    dtypes: Sequence[np.dtype[Any]]
    tolerance: float

    def given(self, dtype: np.dtype[Any] | None = None) -> list[Any]:
        """New copies of the arguments, floats in a dtype where one is given."""
        moved = [arg if dtype is None or not is_array(arg) else convert(arg, dtype) for arg in self.args]
        return [arg.copy() if is_array(arg) else arg for arg in moved]

    def positions(self) -> list[int]:
        """The arguments with a derivative."""
        return [i for i, arg in enumerate(self.args) if is_float_array(arg)]

    def of(self, positions: Sequence[int], args: Sequence[Any]) -> Callable[..., Any]:
        """The function of some arguments alone."""

        def call(*values: Any) -> Any:
            full = list(args)
            for i, value in zip(positions, values, strict=True):
                full[i] = value
            return self.f(*[a.copy() if type(a) is np.ndarray else a for a in full], **self.static)

        return call

    def operation(self) -> Operation | None:
        """The primitive's operation; None for a plain function."""
        return getattr(self.f, "operation", None)

    def names(self) -> list[str]:
        """What the arguments are called."""
        try:
            parameters = list(inspect.signature(self.f).parameters.values())
        except (TypeError, ValueError):  # a builtin that does not say
            parameters = []
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [p.name for p in parameters if p.kind in by_position]
        return [named[i] if i < len(named) else f"argument {i + 1}" for i in range(len(self.args))]

    def differentiable(self) -> bool:
        """Whether central differences can be taken."""
        return bool(self.positions()) and np.dtype("float64") in self.dtypes


def _check_call(case: _Case, reference: Callable[..., Any] | None) -> None:
    given = case.given()
    y: Any = None
    with case.checks("call", "the function must take these arguments as plain arrays"):
        y = case.f(*given, **case.static)
    case.checks.stop_if_failed("call")
    with case.checks("arguments", "compute new arrays: x = x + 1 in place of x += 1") as wrong:
        for line in _writes(case, given, case.given()):
            wrong(line)
    hint = "a function that is differentiated is pure: random numbers come by an argument"
    with case.checks("same again", hint) as wrong:
        for line in mismatches(case.f(*case.given(), **case.static), y, 0):
            wrong(line)
    if reference is None:
        return
    with case.checks("reference", "see which of the two computes what the function should") as wrong:
        for dtype in case.dtypes:
            args = case.given(dtype)
            wide = [convert(arg, np.dtype("float64")) if is_array(arg) else arg for arg in case.given(dtype)]
            for line in mismatches(case.f(*args, **case.static), reference(*wide), _rounding(case, dtype)):
                wrong(f"{line} (in {dtype})")


def _rounding(case: _Case, dtype: np.dtype[Any]) -> float:
    return case.tolerance * TOLERANCE[dtype.name]


def _writes(case: _Case, now: Sequence[Any], before: Sequence[Any]) -> Iterator[str]:
    for name, a, b in zip(case.names(), now, before, strict=True):
        if is_array(b) and as_host(a).tobytes() != b.tobytes():
            yield f"expected {name} to stay as it was, got a write to it"


def _check_trace(case: _Case) -> None:
    hint = "a rule returns the value that the function has; what it keeps stays in pullback"
    with case.checks("under a trace", hint) as wrong:
        if not case.positions():
            raise LeftOut(NO_FLOATS)
        args, names, widest = case.given(case.dtypes[-1]), case.names(), case.dtypes[-1]
        plain = case.f(*case.given(widest), **case.static)
        for positions in _subsets(case.positions()):
            with watched_traces() as opened:
                y, _ = vjp(case.of(positions, args), *[args[i] for i in positions])
            for line in mismatches(y, plain, _rounding(case, widest)):
                wrong(f"{line} (with {', '.join(names[i] for i in positions)} traced)")
            del _
            for line in holders(opened):
                wrong(f"expected nothing traced to outlive the trace, {line}")


def _subsets(positions: list[int]) -> list[list[int]]:
    """Each alone, and all together."""
    alone = [[i] for i in positions]
    return [*alone, positions] if len(positions) > 1 else alone


def _check_gradients(case: _Case, second_order: bool) -> None:
    if not case.differentiable():
        reason = NO_WIDE if case.positions() else NO_FLOATS
        for name in ("gradient", "gradient of all", "second order"):
            case.checks.leave_out(name, reason)
        return
    args, positions, names = case.given(np.dtype("float64")), case.positions(), case.names()
    alone: list[Any] = []
    with case.checks("gradient", "see the rule for this argument; at a kink move the arguments away from it") as wrong:
        for i in positions:
            for line in _slope_lines(case, args, [i], scalar):
                wrong(line)
            alone += gradients(scalar(case.of([i], args)), [args[i]])
    hint = "the cotangent of an argument does not depend on which others are wanted"
    with case.checks("gradient of all", hint) as wrong:
        if len(alone) < 2:
            raise LeftOut("one argument is differentiated")
        together = gradients(scalar(case.of(positions, args)), [args[i] for i in positions])
        named = {names[i]: slope for i, slope in zip(positions, together, strict=True)}
        for line in mismatches(named, alone, 1e-9 * case.tolerance):
            wrong(f"{line} (all arguments together against each alone)")
    if not second_order:
        case.checks.leave_out("second order", "second_order=False")
        return
    hint = "a rule computes with operators and culux operations; pass second_order=False where no second one is needed"
    with case.checks("second order", hint) as wrong:
        for line in _slope_lines(case, args, positions, lambda f: directional(scalar(f))):
            wrong(line)


def _slope_lines(
    case: _Case, args: list[Any], positions: list[int], make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[str]:
    """What is wrong with the gradient of the whole value, and, where it is a tuple, of each output alone."""
    names, values = [case.names()[i] for i in positions], [args[i] for i in positions]
    f = case.of(positions, args)
    y = f(*values)
    yield from slope_problems(make(f), values, case.tolerance, names, quick=True)
    for k in range(len(y)) if type(y) is tuple else ():
        if is_float_array(y[k]):
            one = make(lambda *v, k=k: f(*v)[k])
            lines = slope_problems(one, values, case.tolerance, names, quick=True)
            yield from (f"output {k + 1} alone, {line}" for line in lines)


def _check_pullback(case: _Case) -> None:
    hint = "a pullback is a linear function of its cotangent that writes nothing that it was given or has kept"
    with case.checks("pullback", hint) as wrong:
        if not case.positions():
            raise LeftOut(NO_FLOATS)
        args, positions = case.given(case.dtypes[-1]), case.positions()
        f, values = case.of(positions, args), [args[i] for i in positions]
        if case.differentiable():
            for line in pullback_problems(f, values):
                wrong(line)
        y, pullback = vjp(f, *values)
        dy = tree.map(lambda leaf: weights(leaf, 0), y)
        kept = tree.map(np.copy, (y, dy))
        pullback(dy)
        for line in _writes(case, args, case.given(case.dtypes[-1])):
            wrong(f"{line} by the pullback")
        for name, now, was in zip(("the value", "the cotangent"), (y, dy), kept, strict=True):
            if [as_host(a).tobytes() for a in tree.leaves(now)] != [b.tobytes() for b in tree.leaves(was)]:
                wrong(f"expected {name} to stay as it was, got a write to it by the pullback")


def _check_rule(case: _Case) -> None:
    """What only the rule itself shows: a trace throws away what it did not ask for."""
    operation = case.operation()
    with case.checks("needs", "give None for what needs does not ask for: dy * y if needs[0] else None") as wrong:
        if operation is None or operation.vjp_rule is None:
            raise LeftOut("it is differentiated through its body: no primitive, or one without a rule")
        if not case.positions():
            raise LeftOut(NO_FLOATS)
        for positions in _subsets(case.positions()):
            for line in _rule_problems(case, operation.vjp_rule, positions):
                wrong(line)


def _rule_problems(case: _Case, rule: Callable[..., Any], positions: list[int]) -> Iterator[str]:
    args, names = case.given(case.dtypes[-1]), case.names()
    needs = tuple(i in positions for i in range(len(args)))
    asked = f"needs={needs}"
    y, pullback = rule(needs, *args, **case.static)
    if pullback is None:  # a constant
        return
    cotangents = pullback(tree.map(lambda leaf: weights(leaf, 0), y))
    cotangents = cotangents if type(cotangents) in (tuple, list) else (cotangents,)
    if len(cotangents) != len(args):
        yield f"{asked}: expected {len(args)} cotangents, one for each argument, got {len(cotangents)}"
        return
    for name, need, arg, cotangent in zip(names, needs, args, cotangents, strict=True):
        if cotangent is None:
            continue
        if not need:
            yield f"{asked}: expected None for {name}, whose cotangent is not wanted, got {describe(cotangent)}"
        elif getattr(cotangent, "shape", None) != arg.shape:
            yield f"{asked}: expected a cotangent of shape {arg.shape} for {name}, got {describe(cotangent)}"


def _check_dtypes(case: _Case) -> None:
    hint = "Python floats take the dtype of what they meet; make arrays with dtype=x.dtype"
    with case.checks("dtypes", hint) as wrong:
        positions, names = case.positions(), case.names()
        if not positions:
            raise LeftOut(NO_FLOATS)
        for dtype in case.dtypes:
            args = case.given(dtype)
            values = [args[i] for i in positions]
            y, pullback = vjp(case.of(positions, args), *values)
            cotangents = pullback(tree.map(lambda leaf: weights(leaf, 0), y))
            named = {f"the cotangent of {names[i]}": c for i, c in zip(positions, cotangents, strict=True)}
            for path, leaf in [*tree.leaves_with_path({"the value": y}), *named.items()]:
                if is_float(leaf) and leaf.dtype != dtype:
                    wrong(f"{path}: expected {dtype} for arguments of {dtype}, got {leaf.dtype}")


def _check_implementations(case: _Case) -> None:
    operation = case.operation()
    for name, function in operation.implementations.items() if operation else ():
        check = f"implementation for {name}"
        hint = "it does what the portable one does, on arrays of its backend, strided ones too"
        with case.checks(check, hint) as wrong:
            backend = _usable(name)
            for dtype in case.dtypes:
                for line in _implementation_problems(case, function, backend, dtype):
                    wrong(f"{line} (in {dtype})")


def _usable(name: str) -> Backend:
    try:
        backend = get_backend(name)
    except DeviceError as error:
        raise LeftOut(str(error)) from error
    if not backend.device_count():
        raise LeftOut(f"the backend {name} has no device that can be used")
    return backend


def _implementation_problems(
    case: _Case, function: Callable[..., Any], backend: Backend, dtype: np.dtype[Any]
) -> Iterator[str]:
    expected = case.f.operation.portable(*case.given(dtype), **case.static)  # type: ignore[attr-defined]  # a primitive
    for layout, place in (("", backend.from_host), (" of strided arrays", lambda x, i: _strided(backend, x, i))):
        moved = [place(arg, 0) if is_array(arg) else arg for arg in case.given(dtype)]
        y = function(*moved, **case.static)
        yield from (f"value{layout}: {line}" for line in mismatches(y, expected, _rounding(case, dtype)))
        yield from (f"{line} by the implementation" for line in _writes(case, moved, case.given(dtype)))
        for leaf in tree.leaves(y):
            if not isinstance(leaf, (*backend.array_types, np.generic)):
                yield f"value{layout}: expected an array of {backend.name}, got {describe(leaf)}"
        positions = case.positions()
        if positions:
            args = case.given(dtype)
            wanted = gradients(scalar(case.of(positions, args)), [args[i] for i in positions])
            found = gradients(scalar(case.of(positions, moved)), [moved[i] for i in positions])
            named = {case.names()[i]: slope for i, slope in zip(positions, found, strict=True)}
            yield from (f"gradient{layout}: {line}" for line in mismatches(named, wanted, _rounding(case, dtype)))


def _strided(backend: Backend, x: np.ndarray, index: int) -> Any:
    """The array on a backend with gaps between its elements."""
    return backend.from_host(np.repeat(x, 2, axis=-1), index)[..., ::2] if x.ndim else backend.from_host(x, index)
