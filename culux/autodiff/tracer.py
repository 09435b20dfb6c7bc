"""Traced arrays and the interface of a trace.

A `Trace` is open while a function is being differentiated. It hands out `Tracer`s, handles on values,
and every primitive that meets a tracer is given to the trace of the highest level among its arguments:
`trace.process(primitive, args, static)`. Inside, the arguments are one level lower (plain arrays, or
tracers of an outer trace), so that derivatives of derivatives come by themselves.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import get_ident
from types import TracebackType
from typing import Any, NoReturn, Self, TypeAlias

from culux.errors import FOREIGN_METHODS, DifferentiationError, missing_attribute

__all__ = ["Operation", "Pullback", "Rule", "Trace", "Tracer", "nesting_level", "plain"]

Pullback: TypeAlias = Callable[[Any], tuple[Any, ...]]
"""From the cotangent of the output to a tuple of those of the arguments, None where nothing is wanted; one
argument's may stand without a tuple."""

Rule: TypeAlias = Callable[..., tuple[Any, Pullback | None]]
"""``rule(needs, *args, **static) -> (y, pullback)``; a pullback of None marks a constant output."""


@dataclass(eq=False, slots=True)
class Operation:
    """What a trace knows of a primitive."""

    name: str
    portable: Callable[..., Any]
    composite: bool = False
    vjp_rule: Rule | None = None
    implementations: dict[str, Callable[..., Any]] = field(default_factory=dict)


class _Nesting(threading.local):
    level = 0  # open traces in this thread


_nesting = _Nesting()


def nesting_level() -> int:
    """How many traces are open in this thread."""
    return _nesting.level


_CLOSED = -1  # no thread has this number


class Trace(ABC):
    """An open differentiation: a context that hands out tracers and processes what is done with them."""

    __slots__ = ("entered", "level", "thread")

    def __init__(self) -> None:
        self.level = 0
        self.thread = _CLOSED
        self.entered: set[Operation] = set()

    def __enter__(self) -> Self:
        _nesting.level += 1
        self.level, self.thread = _nesting.level, get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _nesting.level -= 1
        self.thread = _CLOSED

    @abstractmethod
    def process(self, primitive: Operation, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """Do `primitive` on arguments of which at least one is a tracer of this trace."""

    def lower(self, value: Any) -> Any:
        """The value that a tracer of this trace stands for; anything else as it is."""
        return value.value if type(value) is Tracer and value.scope is self else value

    def through(self, primitive: Operation, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """Differentiate `primitive` through its portable implementation, written in culux operations."""
        if primitive in self.entered:  # it came back to itself: it is no composition of others
            raise DifferentiationError(
                f"{primitive.name} has no rule, so it cannot be differentiated; give it one with "
                f"@{primitive.name}.rule, or wrap its use in @culux.custom_gradient or culux.stop_gradient"
            )
        self.entered.add(primitive)
        try:
            return primitive.portable(*args, **static)
        finally:
            self.entered.discard(primitive)

    def refuse(self, primitive: Operation) -> NoReturn:
        """Say why this trace takes no operation now."""
        if self.thread == _CLOSED:
            raise DifferentiationError(
                f"{primitive.name} got a traced array after its trace ended: a value from inside a differentiated "
                "function was kept (in a global, a closure or an attribute); return it instead, or keep "
                "culux.stop_gradient(value)"
            )
        raise DifferentiationError(
            f"{primitive.name} got a traced array of another thread; a trace belongs to one thread"
        )


class Tracer:
    """A traced array: a handle on a node of a trace, with the interface of an array.

    Operators and methods are installed by `culux.numpy`, which knows the operations. It has no
    ``__cuda_array_interface__`` and no ``__dlpack__``: no library can take its data unseen.
    """

    __slots__ = ("node", "scope", "value")

    __array_priority__ = 1000.0  # above CuPy's 100

    def __init__(self, value: Any, trace: Trace, node: int) -> None:
        self.value = value
        self.scope = trace  # not named trace: that is an array method
        self.node = node

    @property
    def __culux_value__(self) -> Any:
        """The value one level down."""
        return self.value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        try:
            return self.value.shape  # type: ignore[no-any-return]  # the array's own
        except AttributeError:
            return ()

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        try:
            return self.value.dtype
        except AttributeError:
            return type(self.value)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(getattr(self.value, "size", 1))

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Tracer({self.value!r}, level={self.scope.level})"

    def __format__(self, spec: str) -> str:
        return format(plain(self), spec) if spec else repr(self)

    def __getattr__(self, name: str) -> NoReturn:
        missing = missing_attribute("a traced array", name)
        if name not in FOREIGN_METHODS and not name.startswith("__") and hasattr(plain(self), name):
            missing.args = (
                f"{missing}: it has the methods that can be differentiated, and none that write; compute with "
                f"culux.numpy functions, or take it of a constant: culux.stop_gradient(x).{name}",
            )
        raise missing

    def _leaves(self, into: str) -> NoReturn:
        raise DifferentiationError(
            f"a traced array cannot become {into} while it is differentiated: its gradient would be lost; compute "
            "with culux.numpy (or np.*, operators, methods), take constants by culux.stop_gradient(x), return "
            "what you want to see with has_aux=True"
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._leaves("a NumPy array")

    def __float__(self) -> NoReturn:
        self._leaves("a Python number")

    __int__ = __index__ = __complex__ = item = tolist = __float__

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise DifferentiationError(
            "a traced array cannot be written to; use culux.numpy.where(mask, new, x), culux.numpy.concatenate "
            "or x = x + update"
        )

    def __reduce__(self) -> NoReturn:
        self._leaves("a pickle")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._leaves("a deep copy")


def plain(value: Any) -> Any:
    """The array behind a traced array of any level; anything else as it is."""
    while type(value) is Tracer:
        value = value.value
    return value
