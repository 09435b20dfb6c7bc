"""The activation record: what an activation computes, its derivative, and its CUDA expressions.

An activation is one class of this form; layers fuse it into their own operations and kernels:

    class Softsign(Activation):
        saves = "x"                                       # the derivative is computed from x
        cuda_forward = "x / (T(1) + fabs(x))"
        cuda_derivative = "T(1) / ((T(1) + fabs(x)) * (T(1) + fabs(x)))"
        def forward(self, xp, x): return x / (1 + xp.abs(x))
        def derivative(self, xp, x, y): ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, check_keywords, describe
from culux.kernels import ActivationCode
from culux.kernels import activation as kernels
from culux.nn.fused import narrow, on_kernels, widen
from culux.numpy.broadcasting import is_half

__all__ = ["Activation", "ActivationLike", "activate", "apply_activation", "code_of", "overwrite"]


@dataclass(frozen=True, repr=False)
class Activation:
    """An elementwise function, ``y = f(x)``, callable on arrays and traced arrays; the dtype is kept.

    Records of one class with equal fields are equal; they hash, pickle and copy. Subclasses define `forward`
    and `derivative`, and the class attributes:

    Attributes:
        name: the record's name; that of the class in lower case if empty.
        saves: what `derivative` reads: ``"y"``, ``"x"``, or None where it is 1 everywhere. With ``"y"`` a
            fused operation may overwrite `x`, so `derivative` then gets None for `x`, and the reverse.
        cuda_forward: y as a CUDA C++ expression of ``x``, of type ``T`` (float or double); fields of the
            record in braces: ``"x > T(0) ? x : {slope} * x"``.
        cuda_derivative: dy/dx as an expression of ``x`` or ``y``, the one in `saves`.
    """

    name: ClassVar[str] = ""
    saves: ClassVar[Literal["x", "y"] | None] = "x"
    cuda_forward: ClassVar[str] = ""
    cuda_derivative: ClassVar[str] = ""

    def __call__(self, x: Array) -> Array:
        """``f(x)`` of a float array of any shape, in its dtype."""
        return activate(x, activation=self)

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)`` of a plain array, as a new array; `xp` is the namespace to compute with."""
        raise NotImplementedError(f"{type(self).__name__} defines forward(self, xp, x) -> f(x)")

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``, a new array (or `x`, `y`), in operators and functions of `xp`: the arguments may be traced."""
        raise NotImplementedError(f"{type(self).__name__} defines derivative(self, xp, x, y) -> f'(x)")

    def overwrite(self, x: np.ndarray) -> np.ndarray:
        """``f(x)`` of a NumPy array that may be overwritten."""
        return self.forward(np, x)  # type: ignore[no-any-return]  # NumPy gives what it is given

    def backward(self, dy: Array, x: Array, y: Array) -> Array:
        """``dy * f'(x)``, a new array unless the derivative is 1 everywhere; one of `x`, `y` may be None."""
        if self.saves is None:
            return dy
        saved = x if self.saves == "x" else y
        if is_half(saved):
            return narrow(self.backward(widen(dy), widen(x), widen(y)), saved)
        factor = self.derivative(namespace_of(saved), x, y)
        if type(factor) is np.ndarray and type(dy) is np.ndarray and factor is not saved:
            return np.multiply(factor, dy, out=factor)
        return dy * factor

    def cuda(self) -> ActivationCode | None:
        """The CUDA expressions with the fields of this record in place; None where the class has none."""
        return _code(self)

    def replace(self, **fields: float) -> Self:
        """The same activation with other parameters: ``leakyrelu.replace(slope=0.2)``."""
        check_keywords(repr(self), fields, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **fields)

    def __repr__(self) -> str:
        """The name of the record in culux, or the call that makes a variant of it."""
        changed = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})" if changed else self.name or type(self).__name__.lower()


@functools.cache
def _code(activation: Activation) -> ActivationCode | None:
    if not activation.cuda_forward:
        return None
    fields = {field.name: f"T({getattr(activation, field.name)!r})" for field in dataclasses.fields(activation)}
    forward, derivative = activation.cuda_forward.format(**fields), activation.cuda_derivative.format(**fields)
    return ActivationCode(repr(activation), forward, derivative, activation.saves)


def code_of(activation: Any) -> ActivationCode | None:
    """The CUDA expressions of an activation; None for a function, which kernels cannot take in."""
    return activation.cuda() if isinstance(activation, Activation) else None


ActivationLike = Activation | Callable[[Any], Any]
"""An activation: one of the records, or any function of an array, in culux operations or NumPy's."""


@primitive
def activate(x: Array, *, activation: Activation) -> Array:
    """``activation(x)`` as one operation; float16 and bfloat16 are computed in float32.

    Args:
        x: any shape.
        activation: the record.

    Raises:
        DTypeError: for integers and booleans; `identity` takes them.
    """
    if activation.saves is None:
        return x
    if getattr(getattr(x, "dtype", None), "kind", "f") in "iub":
        raise DTypeError(f"{activation!r}: expected a float array, got {describe(x)}; x.astype('float32')")
    return narrow(activation.forward(namespace_of(x), widen(x)), x)


@activate.implementation("cupy")
def _(x: Array, *, activation: Activation) -> Array:
    code = activation.cuda()
    if code is None or activation.saves is None or not on_kernels(x):
        return activate.operation.portable(x, activation=activation)
    return kernels.forward(x, code)


@activate.rule
def _(needs: tuple[bool, ...], x: Array, *, activation: Activation) -> tuple[Array, Pullback]:
    y = activate(x, activation=activation)
    # Only what the derivative reads is kept alive.
    kept_x, kept_y = x if activation.saves == "x" else None, y if activation.saves == "y" else None
    saved = y if activation.saves == "y" else x
    code = activation.cuda()
    if code is None or activation.saves is None or not on_kernels(saved):
        return y, lambda dy: (activation.backward(dy, kept_x, kept_y),)

    def pullback(dy: Array) -> tuple[Array]:
        if not on_kernels(dy):  # traced: a derivative of this derivative is being taken
            return (activation.backward(dy, kept_x, kept_y),)
        return (kernels.backward(dy, saved, code),)

    return y, pullback


def apply_activation(activation: ActivationLike, x: Array) -> Array:
    """`activation` of `x`, cut short for `identity`."""
    return x if isinstance(activation, Activation) and activation.saves is None else activation(x)


def overwrite(activation: Activation, z: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """``y = activation(z)`` of a NumPy array that may be overwritten, and what `backward` gets for x and y."""
    if activation.saves == "x":
        return activation.forward(np, z), z, None
    y = activation.overwrite(z)
    return y, None, y if activation.saves == "y" else None
