"""The records of the catalogue: what a public name computes, on which inputs, and what it must equal.

Every public name of `culux.numpy`, `culux.nn`, `culux.layers`, `culux.losses`, `culux.optim` and `culux.init`
has at least one entry in the module of its family here (``ops.py``, ``nn.py``, ``layers.py``, ``losses.py``,
``optim.py``, ``init.py``), which has

    CASES: list                     # records of this file
    WITHOUT_ENTRY: dict[str, str]   # public names that need none -> the reason

The suites are in ``tests/test_catalogue.py``; an entry gets all that its record allows, with no test written by
hand. A function of arrays (an operation, an activation, a loss) is a `Case`:

    Case("culux.numpy.sin", culux.numpy.sin, [normal(3, 4)], reference=np.sin)
    Case("culux.numpy.power", lambda x: x**3, [normal(3)], reference=lambda x: x * x * x, label="cube")
    Case("culux.losses.mse", culux.losses.mse, [normal(4, 3), normal(4, 3)],
         torch=lambda torch, y_hat, y: torch.nn.functional.mse_loss(y_hat, y))
    Case("culux.numpy.take", lambda x, i: cnp.take(x, i, axis=1), [normal(3, 4), integers(4, 5)], reference=...)

A layer is a `LayerCase`, an optimiser rule a `RuleCase`, an initialiser an `InitCase`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

import culux
from culux.backends import backend_of, is_float_array

Maker = Callable[[np.random.Generator], np.ndarray]
"""Makes one input. Float inputs are made in float64 and cast to each dtype; integers and booleans stay."""


@dataclass(frozen=True)
class Case:
    """A function of arrays, its inputs, and what it must equal. At least one of `reference` and `torch`.

    Args:
        name: the public dotted name that the case proves, ``"culux.numpy.sin"``.
        call: the arrays of `inputs` -> an array, or a tuple or tree of arrays. Uses only culux functions and
            operators, so that it takes every backend's arrays and traced ones. Written with ``lambda`` where
            static arguments are needed.
        inputs: one maker per array: `normal`, `uniform`, `apart`, `nonzero`, `integers`, `booleans`, `fixed`.
        reference: the same in plain NumPy and float64; independent of culux.
        torch: ``(torch, *tensors)`` -> the same from torch, whose gradient is compared too.
        label: tells several cases of one name apart.
        differentiable: positions of the inputs with a gradient; None for all float inputs, () for a function
            without derivative (say why in `why`).
        smooth: whether finite differences apply; at ties and kinks only torch's gradient is compared (say so in `why`).
        second_order: whether the second derivative is checked (say why not in `why`).
        why: the reason for what is left out.
        dtypes: the float dtypes that the function takes and keeps.
        keeps_dtype: whether float results have the dtype of the inputs.
        tolerance: a factor on the tolerance of every dtype.
        gradient_tolerance: a factor on the tolerance of finite differences.
        strict: also run on array_api_strict; only for functions written in the array API standard.
        cupy: also run on the stand-in CuPy.
    """

    name: str
    call: Callable[..., Any]
    inputs: Sequence[Maker]
    _: KW_ONLY
    reference: Callable[..., Any] | None = None
    torch: Callable[..., Any] | None = None
    label: str = ""
    differentiable: tuple[int, ...] | None = None
    smooth: bool = True
    second_order: bool = True
    why: str = ""
    dtypes: tuple[str, ...] = ("float16", "float32", "float64")
    keeps_dtype: bool = True
    tolerance: float = 1.0
    gradient_tolerance: float = 1.0
    strict: bool = False
    cupy: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def arrays(self, dtype: str = "float64", seed: int = 0) -> list[np.ndarray]:
        """The inputs in a dtype; those of a lower dtype are roundings of the same numbers."""
        rng = np.random.default_rng(seed)
        made = [np.asarray(make(rng)) for make in self.inputs]
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in made]

    @property
    def widest(self) -> str:
        """The dtype in which it is compared with torch."""
        return "float64" if "float64" in self.dtypes else self.dtypes[-1]

    def positions(self) -> tuple[int, ...]:
        """The inputs with a gradient."""
        if self.differentiable is not None:
            return self.differentiable
        return tuple(i for i, x in enumerate(self.arrays()) if is_float_array(x))


@dataclass(frozen=True)
class LayerCase:
    """A layer, its input, and what it must equal.

    The suites see it as the `Case` of a function of `x` and its parameters (`as_case`), and also check
    `output_shape`, the entries and shapes of `ps` and `st`, the repr, copies and the dtype of `setup`.

    Args:
        name: the public dotted name, ``"culux.layers.Dense"``.
        layer: the layer.
        inputs: one maker per input; one input is `x` itself, several are the tuple `x`.
        parameters: the expected paths and shapes of `ps`, ``{"weight": (4, 3), "bias": (4,)}``.
        states: the expected paths of `st`, in any order.
        reference: ``(ps, st, *inputs) -> y`` in plain NumPy and float64.
        torch: ``(torch, ps, *inputs) -> y`` with `ps` a dict of path -> tensor.
        test_mode: run with ``culux.test_mode(st)``.
        label, smooth, second_order, why, dtypes, tolerance, gradient_tolerance, cupy: as in `Case`.
    """

    name: str
    layer: Any
    inputs: Sequence[Maker]
    _: KW_ONLY
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    reference: Callable[..., Any] | None = None
    torch: Callable[..., Any] | None = None
    test_mode: bool = False
    label: str = ""
    smooth: bool = True
    second_order: bool = True
    why: str = ""
    dtypes: tuple[str, ...] = ("float16", "float32", "float64")
    tolerance: float = 1.0
    gradient_tolerance: float = 1.0
    cupy: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def setup(self) -> tuple[culux.Tree, culux.Tree]:
        """Parameters and states of the layer, the same at every call."""
        ps, st = culux.setup(0, self.layer)
        return ps, culux.test_mode(st) if self.test_mode else st

    def run(self, *arrays: Any) -> Any:
        """``layer(x, ps, st)[0]`` of the inputs followed by the leaves of `ps`; `st` follows their place and dtype."""
        ps, st = self.setup()
        inputs, leaves = arrays[: len(self.inputs)], arrays[len(self.inputs) :]
        ps = culux.tree.unflatten(culux.tree.structure(ps), leaves)
        floats = [a for a in arrays if _kind(a) == "f"]
        y, _ = self.layer(inputs[0] if len(inputs) == 1 else tuple(inputs), ps, _beside(st, (floats or arrays)[0]))
        return y

    def as_case(self) -> Case:
        """The layer as a function of its inputs and the leaves of `ps`."""
        ps, st = self.setup()
        paths = [path for path, _ in culux.tree.leaves_with_path(ps)]
        count = len(self.inputs)
        reference, torch = self.reference, self.torch

        def rebuilt(leaves: Sequence[Any]) -> culux.Tree:
            return culux.tree.unflatten(culux.tree.structure(ps), leaves)

        return Case(
            self.name,
            self.run,
            # A spread around the initial values, so that zeros and ones prove something.
            [*self.inputs, *[_spread(np.asarray(leaf)) for leaf in culux.tree.leaves(ps)]],
            reference=reference and (lambda *a: reference(rebuilt(a[count:]), st, *a[:count])),
            torch=torch and (lambda t, *a: torch(t, dict(zip(paths, a[count:], strict=True)), *a[:count])),
            label=self.label,
            smooth=self.smooth,
            second_order=self.second_order,
            why=self.why,
            dtypes=self.dtypes,
            tolerance=self.tolerance,
            gradient_tolerance=self.gradient_tolerance,
            cupy=self.cupy,
        )


@dataclass(frozen=True)
class RuleCase:
    """An optimiser rule, and what many steps of it must equal.

    The suites take 20 steps with the same gradients on a tree of several leaves and shapes, in float64 against
    `reference` or `torch`, check that `update` keeps structure, dtypes and what it was given, and that a state
    survives a copy in the middle.

    Args:
        name: the public dotted name, ``"culux.optim.Adam"``.
        rule: the rule.
        reference: ``(x, gradients) -> x`` of one float64 array and its list of gradients.
        torch: ``(torch, tensors) -> optimizer``.
        label: tells several cases of one name apart.
        tolerance: a factor on the tolerance.
    """

    name: str
    rule: Any
    _: KW_ONLY
    reference: Callable[[np.ndarray, list[np.ndarray]], np.ndarray] | None = None
    torch: Callable[..., Any] | None = None
    label: str = ""
    tolerance: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


@dataclass(frozen=True)
class InitCase:
    """An initialiser, and the distribution or values that it must have.

    The suites check shape, dtype, that the same rng gives the same numbers, and what is given here.

    Args:
        name: the public dotted name, ``"culux.init.glorot_uniform"``.
        init: the initialiser, ``init(rng, shape, dtype)``.
        shape: a shape with some thousand elements.
        mean: the expected mean.
        std: the expected standard deviation.
        low: no element is smaller.
        high: no element is larger.
        check: asserts what else holds of the array.
        label: tells several cases of one name apart.
    """

    name: str
    init: Callable[..., Any]
    _: KW_ONLY
    shape: tuple[int, ...] = (64, 100)
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    check: Callable[[np.ndarray], None] | None = None
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


SHAPES = culux.Tree(a=(3, 4), b=culux.Tree(c=(5,), d=(1,)))


def random_tree(rng: np.random.Generator, dtype: str = "float64") -> culux.Tree:
    """Parameters, or gradients, for an optimiser's rule."""
    return culux.tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def normal(*shape: int, scale: float = 1.0) -> Maker:
    """Normally distributed numbers."""
    return lambda rng: scale * rng.standard_normal(shape)


def uniform(low: float, high: float, *shape: int) -> Maker:
    """Uniformly distributed numbers of an open interval, a twentieth away from its ends."""
    margin = (high - low) / 20
    return lambda rng: rng.uniform(low + margin, high - margin, shape)


def nonzero(*shape: int, kinks: Sequence[float] = (0.0,), gap: float = 0.1) -> Maker:
    """Numbers of both signs at least `gap` away from every kink of the function (0 by default)."""

    def make(rng: np.random.Generator) -> np.ndarray:
        x = 2 * rng.standard_normal(shape)
        for kink in kinks:
            x = np.where(np.abs(x - kink) < gap, kink + np.where(x < kink, -2 * gap, 2 * gap), x)
        return x

    return make


def apart(*shape: int) -> Maker:
    """Numbers in random order of which no two are closer than a tenth: for max, sort, pooling."""
    size = int(np.prod(shape, dtype=np.int64))
    return lambda rng: rng.permutation(np.linspace(-1, 1, size) * max(1, size / 20)).reshape(shape)


def integers(high: int, *shape: int, low: int = 0) -> Maker:
    """Integers of ``low <= i < high``: indices and labels."""
    return lambda rng: rng.integers(low, high, shape)


def booleans(*shape: int) -> Maker:
    """Truth values, both of them."""
    return lambda rng: rng.permutation(np.arange(np.prod(shape, dtype=np.int64)) % 2 == 0).reshape(shape)


def fixed(values: Any) -> Maker:
    """These values."""
    return lambda rng: np.array(values)


def _kind(x: Any) -> str:
    """``"f"`` for floats, traced ones too."""
    plain = culux.stop_gradient(x)
    return "f" if is_float_array(plain) else ""


def _spread(leaf: np.ndarray) -> Maker:
    return lambda rng: leaf + 0.1 * rng.standard_normal(leaf.shape)


def _beside(st: culux.Tree, like: Any) -> culux.Tree:
    """States where `like` is, floats in its dtype."""
    array = culux.stop_gradient(like)
    backend = backend_of(array)

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        if leaf.dtype.kind == "f" and _kind(array) == "f":
            return backend.from_host(leaf.astype(str(array.dtype).rpartition(".")[2]), 0)
        return backend.from_host(leaf, 0)

    return culux.tree.map(move, st)
