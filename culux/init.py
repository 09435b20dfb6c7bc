"""Initialisers: frozen records that make the arrays that `culux.setup` puts into parameters.

An initialiser is called as ``init(rng, shape, dtype=float32)`` with a `numpy.random.Generator` and returns
a NumPy array; numbers are drawn in float64, so that a seed gives the same weights, rounded, in every dtype.

A weight has the shape (out, in, *kernel), and its fans are ``fan_in = in * prod(kernel)`` and
``fan_out = out * prod(kernel)``. A vector's fans are both its length. Names in lower case are records with
the usual parameters; calling the class, or `replace`, gives others: ``glorot_uniform.replace(gain=2)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from culux.errors import LayerError, ShapeError, check_keywords, describe, nearest

__all__ = [
    "Initialiser",
    "calculate_gain",
    "constant",
    "fans",
    "glorot_normal",
    "glorot_uniform",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "orthogonal",
    "sparse",
    "torch_uniform",
    "truncated_normal",
    "uniform",
    "zeros",
]


@dataclass(frozen=True, repr=False)
class Initialiser:
    """A frozen record that makes an array; called with parameters it gives another record.

    ``normal(rng, (4, 3))`` is an array, ``normal(std=0.02)`` an initialiser. Subclasses define `draw`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An array for ``(rng, shape, dtype=float32)``; for parameters, the same initialiser with them.

        Args:
            *args: rng, a `numpy.random.Generator`, which moves on; shape; dtype. Or parameters in order.
            **kwargs: the same by name.

        Returns:
            A NumPy array of this shape and dtype, or an initialiser.

        Raises:
            LayerError: for arguments that are neither.
        """
        if (args and isinstance(args[0], np.random.Generator)) or "rng" in kwargs:
            return self._array(*args, **kwargs)
        fields = [field.name for field in dataclasses.fields(self)]
        if len(args) > len(fields) or any(not isinstance(a, int | float | str) for a in args):
            given = ", ".join(map(describe, args))
            raise LayerError(
                f"expected {self!r}(rng, shape, dtype=float32) with rng a numpy.random.Generator, "
                f"or {self!r} with its parameters ({', '.join(fields) or 'none'}), got {given}"
            )
        return self.replace(**dict(zip(fields, args, strict=False)), **kwargs)

    def _array(self, rng: np.random.Generator, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        sizes = (int(shape),) if isinstance(shape, int | np.integer) else tuple(shape)
        return np.ascontiguousarray(self.draw(rng, sizes), dtype=dtype).reshape(sizes)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """The numbers, in float64."""
        raise NotImplementedError(f"{type(self).__name__} defines draw(self, rng, shape)")

    def replace(self, **parameters: Any) -> Self:
        """The same initialiser with other parameters: ``glorot_uniform.replace(gain=2)``."""
        check_keywords(self._name, parameters, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **parameters)

    @property
    def _name(self) -> str:
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{self._name}({', '.join(changed)})" if changed else self._name


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight of shape (out, in, *kernel); (1, n) of a vector.

    Raises:
        ShapeError: for a shape without axes.
    """
    if not shape:
        raise ShapeError("expected a shape (out, in, *kernel), got (); a scalar has no fans")
    if len(shape) == 1:
        return 1, shape[0]
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


_GAINS = {
    "linear": 1.0, "identity": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3,
    "relu": math.sqrt(2), "selu": 0.75,
}  # fmt: skip


def calculate_gain(nonlinearity: Any, param: float | None = None) -> float:
    """The factor that keeps the variance through an activation, as torch has it.

    1 for linear maps and sigmoid, 5/3 for tanh, sqrt(2) for relu, sqrt(2 / (1 + slope^2)) for leaky relu,
    3/4 for selu. (Lux has 2 for relu.)

    Args:
        nonlinearity: an activation of culux, or its name or torch's.
        param: the slope of a leaky relu; its own, or 0.01, if None.

    Raises:
        LayerError: for an activation without a known gain.
    """
    name = nonlinearity if isinstance(nonlinearity, str) else type(nonlinearity).__name__
    key = name.lower().replace("_", "")
    if key == "leakyrelu":
        slope = getattr(nonlinearity, "slope", 0.01) if param is None else param
        return math.sqrt(2 / (1 + slope * slope))
    if key not in _GAINS:
        known = [*_GAINS, "leakyrelu"]
        raise LayerError(f"no gain is known for {name!r}{nearest(key, known)}; give a number: gain=1.0")
    return _GAINS[key]


class Zeros(Initialiser):
    """0 everywhere."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros."""
        return np.zeros(shape)


class Ones(Initialiser):
    """1 everywhere."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Ones."""
        return np.ones(shape)


@dataclass(frozen=True, repr=False)
class Constant(Initialiser):
    """`value` everywhere."""

    value: float = 0.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """The value."""
        return np.full(shape, self.value)


@dataclass(frozen=True, repr=False)
class Uniform(Initialiser):
    """Uniform in [low, high)."""

    low: float = 0.0
    high: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``U(low, high)``."""
        return rng.uniform(self.low, self.high, shape)


@dataclass(frozen=True, repr=False)
class Normal(Initialiser):
    """Normal with this mean and standard deviation."""

    mean: float = 0.0
    std: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``N(mean, std^2)``."""
        return rng.normal(self.mean, self.std, shape)


@dataclass(frozen=True, repr=False)
class TruncatedNormal(Initialiser):
    """Normal, cut off below `low` and above `high`, by the inverse of its distribution function."""

    mean: float = 0.0
    std: float = 1.0
    low: float = -2.0
    high: float = 2.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``N(mean, std^2)`` given ``low <= x <= high``."""
        from scipy.special import ndtr, ndtri  # `import culux` loads no SciPy

        first, last = ndtr([(self.low - self.mean) / self.std, (self.high - self.mean) / self.std])
        drawn = self.mean + self.std * ndtri(rng.uniform(first, last, shape))
        clipped: np.ndarray = np.clip(drawn, self.low, self.high)
        return clipped


@dataclass(frozen=True, repr=False)
class GlorotUniform(Initialiser):
    """``U(-b, b)`` with ``b = gain * sqrt(6 / (fan_in + fan_out))`` (Glorot & Bengio 2010)."""

    gain: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``U(-b, b)``."""
        bound = self.gain * math.sqrt(6 / sum(fans(shape)))
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True, repr=False)
class GlorotNormal(Initialiser):
    """``N(0, gain^2 * 2 / (fan_in + fan_out))`` (Glorot & Bengio 2010)."""

    gain: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``N(0, std^2)``."""
        return rng.normal(0, self.gain * math.sqrt(2 / sum(fans(shape))), shape)


@dataclass(frozen=True, repr=False)
class _Kaiming(Initialiser):
    """The standard deviation of both forms: ``gain / sqrt(fan)``."""

    gain: float | None = None
    nonlinearity: Any = "relu"
    mode: str = "fan_in"

    def __post_init__(self) -> None:
        if self.mode not in ("fan_in", "fan_out"):
            raise LayerError(f"{self._name}: expected mode 'fan_in' or 'fan_out', got {self.mode!r}")

    def _std(self, shape: tuple[int, ...]) -> float:
        gain = calculate_gain(self.nonlinearity) if self.gain is None else self.gain
        return gain / math.sqrt(fans(shape)[self.mode == "fan_out"])


@dataclass(frozen=True, repr=False)
class KaimingUniform(_Kaiming):
    """``U(-b, b)`` with ``b = gain * sqrt(3 / fan)`` (He et al. 2015).

    `gain` is `calculate_gain` of `nonlinearity` if None; `mode` is "fan_in" or "fan_out".
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``U(-b, b)``."""
        bound = math.sqrt(3) * self._std(shape)
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True, repr=False)
class KaimingNormal(_Kaiming):
    """``N(0, gain^2 / fan)`` (He et al. 2015); the parameters are those of `kaiming_uniform`."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``N(0, std^2)``."""
        return rng.normal(0, self._std(shape), shape)


@dataclass(frozen=True, repr=False)
class TorchUniform(Initialiser):
    """``U(-b, b)`` with ``b = 1 / sqrt(fan_in)``: torch's default for weight and bias of Linear and Conv.

    A bias has no fan of its own: its layer gives that of the weight, ``torch_uniform(fan_in=in_dims)``.
    """

    fan_in: int | None = None

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """``U(-b, b)``."""
        if self.fan_in is None and len(shape) < 2:
            raise ShapeError(
                f"torch_uniform: expected a weight of shape (out, in, *kernel), got {shape}; "
                "for a bias give the weight's fan: torch_uniform(fan_in=in_dims)"
            )
        fan_in = fans(shape)[0] if self.fan_in is None else self.fan_in
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True, repr=False)
class Orthogonal(Initialiser):
    """`gain` times a random matrix (out, in * kernel) with orthonormal rows or columns (Saxe et al. 2014)."""

    gain: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Q of the QR decomposition of a normal matrix, signed so that it is uniformly distributed."""
        if len(shape) < 2:
            raise ShapeError(f"orthogonal: expected a shape of two axes at least, got {shape}")
        rows, columns = shape[0], math.prod(shape[1:])
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -self.gain, self.gain)
        return (q.T if rows < columns else q).reshape(shape)


@dataclass(frozen=True, repr=False)
class Sparse(Initialiser):
    """``N(0, std^2)`` with ``ceil(sparsity * out)`` zeros in every column of (out, in) (Martens 2010)."""

    sparsity: float = 0.1
    std: float = 0.01

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """A normal matrix with zeros in random rows of each column."""
        if len(shape) != 2:
            raise ShapeError(f"sparse: expected a shape (out, in), got {shape}")
        drawn = rng.normal(0, self.std, shape)
        order = np.argsort(rng.random(shape), axis=0)
        np.put_along_axis(drawn, order[: math.ceil(self.sparsity * shape[0])], 0, axis=0)
        return drawn


@dataclass(frozen=True, repr=False)
class Identity(Initialiser):
    """The identity map: `gain` on the diagonal of (out, in), at index n // 2 of a kernel; zeros for a vector.

    `shift` rolls it: by a number along the first axis, or by one for every axis.
    """

    gain: float = 1.0
    shift: int | tuple[int, ...] = 0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """`gain` where output i reads input i, at the centre of the kernel."""
        drawn = np.zeros(shape)
        if len(shape) > 1:
            centre = tuple(n // 2 for n in shape[2:])
            for i in range(min(shape[:2])):
                drawn[(i, i, *centre)] = self.gain
        if isinstance(self.shift, int):
            return np.roll(drawn, self.shift, axis=0)
        if len(self.shift) != len(shape):
            raise ShapeError(f"identity: expected a shift for every axis of {shape}, got {self.shift}")
        return np.roll(drawn, self.shift, axis=tuple(range(len(shape))))


zeros = Zeros()
"""0 everywhere."""
ones = Ones()
"""1 everywhere."""
constant = Constant()
"""``constant(value)``: the same value everywhere."""
uniform = Uniform()
"""``uniform(low, high)``: uniform in [low, high), by default [0, 1)."""
normal = Normal()
"""``normal(mean, std)``: normal, by default N(0, 1)."""
truncated_normal = TruncatedNormal()
"""``truncated_normal(mean, std, low, high)``: normal within bounds, by default N(0, 1) within [-2, 2]."""
glorot_uniform = GlorotUniform()
"""``glorot_uniform(gain)``: U(-b, b) with b = gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
glorot_normal = GlorotNormal()
"""``glorot_normal(gain)``: N(0, gain^2 2 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
kaiming_uniform = KaimingUniform()
"""``kaiming_uniform(gain)`` or ``(nonlinearity=relu)``: U(-b, b) with b = gain sqrt(3 / fan_in) (He et al. 2015)."""
kaiming_normal = KaimingNormal()
"""``kaiming_normal(gain)`` or ``(nonlinearity=relu)``: N(0, gain^2 / fan_in) (He et al. 2015)."""
torch_uniform = TorchUniform()
"""``torch_uniform(fan_in)``: U(-b, b) with b = 1 / sqrt(fan_in), torch's default for Linear and Conv."""
orthogonal = Orthogonal()
"""``orthogonal(gain)``: gain times a matrix with orthonormal rows or columns (Saxe et al. 2014)."""
sparse = Sparse()
"""``sparse(sparsity, std)``: normal with a share of zeros in every column (Martens 2010)."""
identity = Identity()
"""``identity(gain, shift)``: the identity map, for kernels too."""
