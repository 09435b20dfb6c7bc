"""Primitives: functions that a trace records as one operation.

    @primitive
    def square(x):                      # the portable implementation: right on every backend
        return x * x

    @square.implementation("cupy")      # a faster one where the arrays are CuPy's
    def _(x): ...

    @square.rule                        # needs: which arguments' cotangents are wanted
    def _(needs, x):
        return x * x, lambda dy: (2 * x * dy,)

Arrays are positional arguments, everything static is keyword-only; a trace looks for tracers among the
positional arguments only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast, overload

from culux.autodiff.tracer import Operation, Pullback, Rule, Tracer, plain
from culux.backends.registry import backend_of, is_mixed, mixed_message, out_of_memory
from culux.errors import CuluxError, DeviceError, DifferentiationError, describe

__all__ = ["Primitive", "custom_gradient", "primitive"]

F = TypeVar("F", bound=Callable[..., Any])


class Primitive(Protocol):
    """A function that a trace records as one operation; see the module."""

    __name__: str
    operation: Operation

    def __call__(self, *args: Any, **static: Any) -> Any:
        """The result; recorded where an argument is traced."""
        ...

    def rule(self, function: Rule, /) -> Rule:
        """Register the rule for reverse mode: ``rule(needs, *args, **static) -> (y, pullback)``.

        `needs` says for each argument whether its cotangent is wanted. The pullback takes the cotangent of
        `y` (a tuple where `y` is one, with None for unused outputs) and returns one cotangent per argument,
        None for those that are not wanted; that of a single argument may stand without a tuple. In higher
        derivatives the arguments are traced arrays, so a rule computes with operators and culux operations;
        that of a composite primitive may use anything.
        """
        ...

    def implementation(self, backend: str, /) -> Callable[[F], F]:
        """Register an implementation for the arrays of a backend, by the backend's name."""
        ...


def _make(portable: Callable[..., Any], composite: bool) -> Primitive:
    """A plain function around the operation: it pickles by name, binds as a method, and calls fast."""
    operation = Operation(portable.__name__.strip("_"), portable, composite)

    @functools.wraps(portable)
    def call(*args: Any, **static: Any) -> Any:
        top = None
        for a in args:
            if type(a) is Tracer and (top is None or a.scope.level > top.level):
                top = a.scope
        try:
            if top is not None:
                return top.process(operation, args, static)
            if operation.implementations:
                name = backend_of(*args).name
                return operation.implementations.get(name, portable)(*args, **static)
            return portable(*args, **static)
        except Exception as error:
            explain(operation, args, error)
            raise

    def rule(function: Rule) -> Rule:
        operation.vjp_rule = function
        return function

    def implementation(backend: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            operation.implementations[backend] = function
            return function

        return register

    result = cast(Primitive, call)
    result.operation = operation
    result.rule = rule  # type: ignore[method-assign]  # attributes of a function
    result.implementation = implementation  # type: ignore[method-assign]  # attributes of a function
    return result


def explain(operation: Operation, args: tuple[Any, ...], error: Exception) -> None:
    """Turn an array library's complaint about foreign arrays, or memory, into one that names the operation."""
    if isinstance(error, CuluxError):
        return
    values = [plain(a) for a in args]
    if isinstance(error, MemoryError):
        raise out_of_memory(operation.name, values, error) from error
    if is_mixed(values):
        names = tuple(inspect.signature(operation.portable).parameters)
        raise DeviceError(f"{operation.name}: {mixed_message(values, names)}") from error


@overload
def primitive(function: Callable[..., Any], /) -> Primitive: ...
@overload
def primitive(*, composite: bool = False) -> Callable[[Callable[..., Any]], Primitive]: ...
def primitive(
    function: Callable[..., Any] | None = None, /, *, composite: bool = False
) -> Primitive | Callable[[Callable[..., Any]], Primitive]:
    """Make a function a primitive: recorded as one operation, differentiated by its rule.

    Without a rule it is differentiated through its body, which then has to be written in culux operations.

    Args:
        function: the portable implementation; arrays positional, static values keyword-only.
        composite: the body is written in culux operations, and higher derivatives go through it; its rule
            then only ever sees plain arrays and may use any library.

    Returns:
        The primitive, with the decorators ``.rule`` and ``.implementation(backend)``.
    """
    if function is None:
        return lambda f: _make(f, composite)
    return _make(function, composite)


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function its own derivative: ``function(*arrays, **static) -> (y, pullback)``.

    Inside, the arrays are plain; ``pullback(dy)`` returns one cotangent per array, or the bare cotangent
    where there is one array. Their number, shapes and dtypes are checked.

    Raises:
        DifferentiationError: for a result that is no such pair, or cotangents that do not fit.
    """

    @functools.wraps(function)
    def portable(*arrays: Any, **static: Any) -> Any:
        for name, value in static.items():
            if type(value) is Tracer:
                raise DifferentiationError(
                    f"{function.__name__}: {name} is a traced array and came by keyword, which is for static values; "
                    "pass arrays by position"
                )
        return _pair(function, arrays, static)[0]

    def rule(needs: tuple[bool, ...], *arrays: Any, **static: Any) -> tuple[Any, Pullback]:
        y, pullback = _pair(function, arrays, static)

        def checked(dy: Any) -> tuple[Any, ...]:
            cotangents = pullback(dy)
            if type(cotangents) not in (tuple, list):
                cotangents = (cotangents,)
            _check_cotangents(function.__name__, arrays, tuple(cotangents))
            return tuple(c if need else None for c, need in zip(cotangents, needs, strict=True))

        return y, checked

    result = _make(portable, composite=False)
    result.rule(rule)
    return result


def _pair(function: Callable[..., Any], arrays: tuple[Any, ...], static: dict[str, Any]) -> tuple[Any, Any]:
    result = function(*arrays, **static)
    if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
        raise DifferentiationError(
            f"{function.__name__}: a custom gradient returns (y, pullback), got {describe(result)}; "
            "pullback(dy) returns one cotangent per array"
        )
    return result


def _check_cotangents(name: str, arrays: tuple[Any, ...], cotangents: tuple[Any, ...]) -> None:
    if len(cotangents) != len(arrays):
        raise DifferentiationError(
            f"{name}: expected {len(arrays)} cotangents from the pullback, one per array, got {len(cotangents)}"
        )
    for i, (array, cotangent) in enumerate(zip(arrays, cotangents, strict=True)):
        if cotangent is None or not hasattr(array, "dtype"):
            continue
        shape, dtype = getattr(cotangent, "shape", ()), getattr(cotangent, "dtype", None)
        if shape != array.shape or dtype != array.dtype:
            raise DifferentiationError(
                f"{name}: expected a cotangent of shape {array.shape} and dtype {array.dtype} for array {i + 1}, "
                f"got {describe(cotangent)}"
            )
