"""One step of each kind of recurrent layer: in culux operations, and by hand forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from culux.backends import Array
from culux.nn.activations import sigmoid, tanh

__all__ = ["Carry", "Gru", "Kind", "Lstm", "Rnn"]

Carry = tuple[Array, ...]
"""What one step hands on to the next: (h,), or (h, c) of an LSTM, each (batch, out_dims)."""


class Kind(Protocol):
    """One step of a kind of recurrent layer, in three forms.

    In all of them `x` is the step's input, projected, and `hidden` is ``h @ weight_hh.T`` with its bias.
    """

    name: ClassVar[str]
    gates: ClassVar[int]
    carries: ClassVar[tuple[str, ...]]
    splits: ClassVar[bool]
    """Whether `x` and `hidden` are not just added, so that their cotangents differ."""

    def step(self, x: Array, hidden: Array, carry: Carry) -> Carry:
        """The carry after the step, in culux operations."""

    def forward(self, xp: Any, x: Array, hidden: Array, carry: Carry) -> tuple[Carry, Any]:
        """The same of plain arrays, and what `backward` reads; `hidden` may be overwritten."""

    def backward(self, xp: Any, saved: Any, dcarry: Carry, dx: Array, dhidden: Array) -> tuple[Array | None, ...]:
        """Write the cotangents of `x` and `hidden`; those of the carry, None for 0, without what goes by `hidden`."""


@dataclass(frozen=True)
class Rnn:
    """``activation(x + hidden)``."""

    activation: Any  # any ActivationLike; `forward` and `backward` are only called where it is a record
    name: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    carries: ClassVar[tuple[str, ...]] = ("h",)
    splits: ClassVar[bool] = False

    def step(self, x: Array, hidden: Array, carry: Carry) -> Carry:
        """The carry after the step, in culux operations."""
        return (self.activation(x + hidden),)

    def forward(self, xp: Any, x: Array, hidden: Array, carry: Carry) -> tuple[Carry, Any]:
        """The same of plain arrays, and what `backward` reads."""
        hidden += x
        y, saves = self.activation.forward(xp, hidden), self.activation.saves
        return (y,), (hidden if saves == "x" else None, y if saves == "y" else None)

    def backward(self, xp: Any, saved: Any, dcarry: Carry, dx: Array, dhidden: Array) -> tuple[Array | None, ...]:
        """Write `dx` and `dhidden`; the cotangents of the carry."""
        dx[...] = self.activation.backward(dcarry[0], *saved)
        return (None,)


class Lstm:
    """``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')``."""

    name: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    carries: ClassVar[tuple[str, ...]] = ("h", "c")
    splits: ClassVar[bool] = False

    def step(self, x: Array, hidden: Array, carry: Carry) -> Carry:
        """The carry after the step, in culux operations."""
        i, f, g, o = _parts(x + hidden, 4)
        c = sigmoid(f) * carry[1] + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    def forward(self, xp: Any, x: Array, hidden: Array, carry: Carry) -> tuple[Carry, Any]:
        """The same of plain arrays, and what `backward` reads."""
        hidden += x
        i, f, g, o = _parts(hidden, 4)
        _overwrite_by_sigmoid(xp, hidden[:, : 2 * i.shape[1]])
        xp.tanh(g, out=g)
        _overwrite_by_sigmoid(xp, o)
        c = f * carry[1]
        c += i * g
        squashed = xp.tanh(c)
        return (o * squashed, c), (hidden, carry[1], squashed)

    def backward(self, xp: Any, saved: Any, dcarry: Carry, dx: Array, dhidden: Array) -> tuple[Array | None, ...]:
        """Write `dx` and `dhidden`; the cotangents of the carry."""
        (dh, dc), (gates, c, squashed) = dcarry, saved
        i, f, g, o = _parts(gates, 4)
        di, df, dg, do = _parts(dx, 4)
        total = squashed * squashed
        xp.subtract(1, total, out=total)
        total *= o
        total *= dh
        total += dc
        slope = gates * gates
        xp.subtract(gates, slope, out=slope)
        slope_g = _parts(slope, 4)[2]
        xp.multiply(g, g, out=slope_g)
        xp.subtract(1, slope_g, out=slope_g)
        xp.multiply(total, g, out=di)
        xp.multiply(total, c, out=df)
        xp.multiply(total, i, out=dg)
        xp.multiply(dh, squashed, out=do)
        dx *= slope
        total *= f
        return None, total


class Gru:
    """``n = tanh(n_x + sigmoid(r) * n_h)``, ``h' = n + sigmoid(z) * (h - n)``."""

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    carries: ClassVar[tuple[str, ...]] = ("h",)
    splits: ClassVar[bool] = True

    def step(self, x: Array, hidden: Array, carry: Carry) -> Carry:
        """The carry after the step, in culux operations."""
        (xr, xz, xn), (hr, hz, hn) = _parts(x, 3), _parts(hidden, 3)
        new = tanh(xn + sigmoid(xr + hr) * hn)
        return (new + sigmoid(xz + hz) * (carry[0] - new),)

    def forward(self, xp: Any, x: Array, hidden: Array, carry: Carry) -> tuple[Carry, Any]:
        """The same of plain arrays, and what `backward` reads."""
        (h,), n = carry, carry[0].shape[1]
        gates = x[:, : 2 * n] + hidden[:, : 2 * n]
        _overwrite_by_sigmoid(xp, gates)
        reset, update = _parts(gates, 2)
        held = hidden[:, 2 * n :]
        new = reset * held
        new += x[:, 2 * n :]
        xp.tanh(new, out=new)
        y = h - new
        y *= update
        y += new
        return (y,), (gates, held, new, h)

    def backward(self, xp: Any, saved: Any, dcarry: Carry, dx: Array, dhidden: Array) -> tuple[Array | None, ...]:
        """Write `dx` and `dhidden`; the cotangents of the carry."""
        (dh,), (gates, held, new, h) = dcarry, saved
        n = h.shape[1]
        reset, update = _parts(gates, 2)
        dreset, dupdate, dnew = _parts(dx, 3)
        through = dh * update
        xp.subtract(dh, through, out=dnew)
        dnew *= 1 - new * new
        xp.multiply(dnew, held, out=dreset)
        xp.multiply(dh, h - new, out=dupdate)
        dx[:, : 2 * n] *= gates - gates * gates
        dhidden[:, : 2 * n] = dx[:, : 2 * n]
        xp.multiply(dnew, reset, out=dhidden[:, 2 * n :])
        return (through,)


def _parts(a: Array, count: int) -> list[Array]:
    """The equal parts of the columns."""
    n = a.shape[1] // count
    return [a[:, k * n : (k + 1) * n] for k in range(count)]


def _overwrite_by_sigmoid(xp: Any, z: Array) -> None:
    """``1 / (1 + exp(-z))`` as ``tanh(z / 2) / 2 + 1 / 2``, which overflows nowhere."""
    z *= 0.5
    xp.tanh(z, out=z)
    z *= 0.5
    z += 0.5
