"""Reverse-mode transforms: `gradient`, `value_and_gradient`, `vjp`, `stop_gradient`, and JAX's spellings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from culux import tree
from culux.autodiff.foreign import explain_foreign
from culux.autodiff.tape import ReverseTrace, backward, recording
from culux.autodiff.tracer import Tracer, plain
from culux.backends import is_array, is_float_array
from culux.backends.counting import note_saved
from culux.backends.registry import namespace_of
from culux.errors import CuluxError, DifferentiationError, ShapeError, describe

__all__ = ["grad", "gradient", "stop_gradient", "value_and_grad", "value_and_gradient", "vjp"]


def stop_gradient(x: Any) -> Any:
    """`x` as a constant: every traced leaf of a tree replaced by its plain array."""
    return tree.map(plain, x)


def gradient(f: Callable[..., Any], *args: Any) -> Any:
    """The gradient of a scalar function with respect to all its arguments.

    ``gradient(f, ps)`` has the tree, shapes and dtypes of `ps`; with several arguments it is a tuple. A
    float leaf that `f` does not use gets zeros; a leaf that cannot be differentiated (integers, strings,
    None) gets None. A functor's gradient is the Tree of its `trainable()`, a `StatefulLayer`'s that of `ps`.

    Args:
        f: a function of `args` with a scalar result.
        *args: trees, arrays or Python floats.

    Raises:
        DifferentiationError: for a result that is no scalar, or an integer argument.
    """
    return value_and_gradient(f, *args)[1]


def value_and_gradient(f: Callable[..., Any], *args: Any, has_aux: bool = False) -> tuple[Any, Any]:
    """The value of a scalar function and its gradient with respect to all its arguments.

    Args:
        f: a function of `args` with a scalar result; with `has_aux` it returns ``(value, aux)``.
        *args: trees, arrays or Python floats; see `gradient`.
        has_aux: `f` also returns something that is not differentiated, such as the new state.

    Returns:
        ``(value, gradient)``, or ``((value, aux), gradient)``; value and aux are plain.

    Raises:
        DifferentiationError: for a result that is no scalar, or an integer argument.
    """
    if not args:
        raise DifferentiationError("expected at least one argument to differentiate with respect to, got none")
    trace, inputs, result, aux = _trace(f, args, has_aux)
    seeds = _seed(trace, result)
    cotangents = backward(trace.tape, seeds, _count(inputs), once=True)
    taken: set[int] = set()
    found = tuple([entry.collect(cotangents, taken) for entry in inputs])
    value = trace.lower(result)
    return (value, aux) if has_aux else value, found if len(found) > 1 else found[0]


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The value of a function, and its pullback: from a cotangent of the value to those of the primals.

    Args:
        f: any function of `primals`; its result may be a tree; with `has_aux` it returns ``(y, aux)``.
        *primals: trees, arrays or Python floats.
        has_aux: `f` also returns something that is not differentiated.

    Returns:
        ``(y, pullback)`` or ``(y, pullback, aux)``. ``pullback(dy)`` takes a tree of the structure of `y`
        and returns a tuple with one entry per primal; it can be called again.

    Raises:
        DifferentiationError: for an integer primal.
        ShapeError: from the pullback, for a `dy` whose structure or shapes are not those of `y`.
    """
    trace, inputs, result, aux = _trace(f, primals, has_aux)
    count = _count(inputs)
    y = tree.map(trace.lower, result)

    def pullback(dy: Any) -> tuple[Any, ...]:
        seeds: list[tuple[int, Any]] = []

        def seed(path: str, output: Any, value: Any, cotangent: Any) -> None:
            _check_cotangent(path, value, cotangent)
            if isinstance(output, Tracer) and output.scope is trace:
                seeds.append((output.node, _like(value, cotangent)))

        tree.map_with_path(seed, result, y, dy)
        cotangents = backward(trace.tape, seeds, count, once=False)
        taken = {id(cotangent) for _, cotangent in seeds}
        return tuple([entry.collect(cotangents, taken) for entry in inputs])

    return (y, pullback, aux) if has_aux else (y, pullback)


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """JAX's form: a function of the same arguments that returns the value and the gradient.

    Args:
        f: a function with a scalar result, or ``(value, aux)`` with `has_aux`.
        argnums: which positional arguments are differentiated; a sequence gives a tuple of gradients.
        has_aux: `f` also returns something that is not differentiated.
    """
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if any(not -len(args) <= i < len(args) for i in positions):
            raise DifferentiationError(f"argnums={argnums} with {len(args)} positional arguments")
        wanted = [i % len(args) for i in positions]

        def of_wanted(*values: Any) -> Any:
            full = list(args)
            for i, value in zip(wanted, values, strict=True):
                full[i] = value
            return f(*full, **kwargs)

        value, found = value_and_gradient(of_wanted, *[args[i] for i in wanted], has_aux=has_aux)
        return value, (found,) if not isinstance(argnums, int) and len(wanted) == 1 else found

    return function


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """JAX's form: a function of the same arguments that returns the gradient, or ``(gradient, aux)``."""
    both = value_and_grad(f, argnums, has_aux)

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return function


class _Input:
    """One argument of a differentiated function: its traced form, and how to collect its gradient."""

    def __init__(self, trace: ReverseTrace, value: Any, position: int, count: int) -> None:
        self.first = len(trace.tape)
        self.wanted: list[bool] = []  # which leaves have a gradient
        name = "the argument" if count == 1 else f"argument {position + 1}"
        if (is_array(value) and not is_float_array(value)) or isinstance(value, (int, np.integer, np.bool_)):
            raise DifferentiationError(
                f"{name} is {describe(value)}: only floats have a gradient; convert it (x.astype('float32'), 3.0) "
                "or close over it: gradient(lambda ps: f(ps, labels), ps)"
            )
        if hasattr(type(value), "initial_parameters") and not hasattr(value, "__culux_trainable__"):
            raise DifferentiationError(
                f"{name} is the layer {type(value).__name__}, which holds no arrays; differentiate with respect to its "
                "parameters, gradient(lambda ps: loss(model, ps), ps), or to culux.StatefulLayer(model, ps, st)"
            )

        note, lift_leaf = self.wanted.append, trace.lift

        def lift(leaf: Any) -> Any:
            wanted = is_differentiable(leaf)
            note(wanted)
            return lift_leaf(leaf) if wanted else leaf

        # A model (functor, StatefulLayer) names its trained arrays and takes others in their place.
        model = hasattr(value, "__culux_trainable__")
        self.tree = value.__culux_trainable__() if model else value
        lifted = tree.map(lift, self.tree)
        self.traced = value.__culux_replace__(lifted) if model else lifted

    def collect(self, cotangents: list[Any], taken: set[int]) -> Any:
        """The gradient: the argument's tree with cotangents for its leaves, no two of them one array.

        `taken` holds the ids of arrays that belong to somebody: the caller's, and the leaves handed out before.
        """
        found, wanted = iter(cotangents[self.first :]), iter(self.wanted)

        def of(leaf: Any) -> Any:
            if not next(wanted):
                return None
            cotangent = next(found)
            if cotangent is None:
                return 0.0 if type(leaf) is float else namespace_of(leaf).zeros_like(leaf)
            if type(leaf) is float:
                return float(cotangent) if type(cotangent) is not Tracer else cotangent
            # A pullback may hand on what it got, or a view: what the user gets can be written to without harm.
            if id(cotangent) in taken or getattr(cotangent, "base", None) is not None:
                cotangent = cotangent.copy()
            taken.add(id(cotangent))
            return cotangent

        return tree.map(of, self.tree)


def _trace(f: Callable[..., Any], args: tuple[Any, ...], has_aux: bool) -> tuple[ReverseTrace, list[_Input], Any, Any]:
    """Call `f` on traced arguments: the ended trace, the inputs, the result as traced, and the plain aux."""
    with recording.make() as trace:
        inputs = [_Input(trace, arg, i, len(args)) for i, arg in enumerate(args)]
        result = _call(f, [entry.traced for entry in inputs])
    note_saved(trace.tape)
    if not has_aux:
        return trace, inputs, result, None
    result, aux = _value_and_aux(result)
    return trace, inputs, result, tree.map(trace.lower, aux)


def _count(inputs: list[_Input]) -> int:
    """How many leaves are differentiated: the first entries of the tape are theirs."""
    return sum([sum(entry.wanted) for entry in inputs])


def is_differentiable(leaf: Any) -> bool:
    """Whether a leaf has a gradient: float arrays and scalars have, traced ones too."""
    if is_float_array(leaf) or type(leaf) is Tracer or type(leaf) is float:
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and getattr(dtype, "kind", "") == "c":
        raise DifferentiationError(f"complex arrays have no rules, got {describe(leaf)}; pass real and imaginary parts")
    if hasattr(leaf, "__culux_trainable__"):
        raise DifferentiationError(
            f"a {type(leaf).__name__} inside of an argument has no gradient; pass it as an argument of its own: "
            "gradient(lambda m, x: loss(m, x), m, x)"
        )
    if hasattr(leaf, "__dlpack__") and not is_array(leaf):
        raise DifferentiationError(
            f"{describe(leaf)} is no array of NumPy or CuPy, and no gradient is taken of it; bring it into one first, "
            "culux.cpu_device()(x) for torch and JAX arrays, numpy.asarray(x) for others"
        )
    return isinstance(leaf, np.generic) and leaf.dtype.kind == "f"


def _call(f: Callable[..., Any], args: list[Any]) -> Any:
    try:
        return f(*args)
    except CuluxError:
        raise
    except Exception as error:
        explanation = explain_foreign(error)
        if explanation is None:
            raise
        raise DifferentiationError(explanation) from error


def _value_and_aux(result: Any) -> tuple[Any, Any]:
    if type(result) is not tuple or len(result) != 2:
        raise DifferentiationError(f"with has_aux=True the function returns (value, aux), got {describe(result)}")
    return result


def _seed(trace: ReverseTrace, result: Any) -> list[tuple[int, Any]]:
    """The cotangent 1 of a scalar result; an error for any other."""
    value = trace.lower(result)
    shape = getattr(value, "shape", () if isinstance(value, (int, float)) else None)
    if shape is None or type(value) is bool or getattr(getattr(value, "dtype", None), "kind", "") == "b":
        hint = "; is a return missing?" if value is None else "; with (value, aux) pass has_aux=True"
        raise DifferentiationError(f"expected a scalar result, got {describe(value)}{hint}")
    if shape != ():
        raise DifferentiationError(
            f"expected a scalar result, got shape {tuple(shape)}; reduce it (y.sum(), y.mean()), or use culux.vjp"
        )
    if value is result:  # nothing on this tape led to it
        return []
    scalar = type(value) is float or isinstance(value, np.generic)
    one = type(value)(1) if scalar else namespace_of(value).ones_like(value)
    return [(result.node, one)]


def _like(value: Any, cotangent: Any) -> Any:
    """A cotangent in the dtype of the value that it belongs to."""
    dtype, given = getattr(value, "dtype", None), getattr(cotangent, "dtype", None)
    if dtype is None:
        return cotangent
    if given is None:  # asked first: a NumPy dtype of float64 equals None
        return namespace_of(value).full_like(value, cotangent)
    return cotangent if dtype == given else cotangent.astype(dtype)


def _check_cotangent(path: str, value: Any, cotangent: Any) -> None:
    expected, got = getattr(value, "shape", ()), getattr(cotangent, "shape", ())
    if tuple(expected) != tuple(got):
        place = f" at {path}" if path else ""
        raise ShapeError(f"expected a cotangent of shape {tuple(expected)}{place}, got {describe(cotangent)}")
