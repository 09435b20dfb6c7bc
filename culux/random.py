"""Counter-based random numbers: a state is a key and a counter, and the same state gives the same bits everywhere.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The
stream of a state is defined by NumPy's: ``np.random.Generator(np.random.Philox(key=key,
counter=counter)).random(n, dtype)``. A draw returns the state that comes after it and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from culux.backends import Array, Backend, backend_of
from culux.core.fields import untraced
from culux.errors import DTypeError, LayerError, describe
from culux.kernels import philox
from culux.tree import Tree

__all__ = ["advance", "check_state", "dropout_mask", "implementation", "rng_state", "uniform"]

Draw = Callable[[Array, Array, int, np.dtype[Any]], tuple[Array, Array]]
"""``draw(key, counter, n, dtype) -> (uniform numbers [n], counter after them)``, all on one device."""

_WORDS_PER_BLOCK = 4  # 64-bit words that Philox4x64 makes of one counter value
_implementations: dict[str, Draw] = {}


def implementation(name: str) -> Callable[[Draw], Draw]:
    """Register a draw for the states on a backend: ``@implementation("cupy")``; it must give the same bits.

    Args:
        name: the backend's name.
    """

    def register(draw: Draw) -> Draw:
        _implementations[name] = draw
        return draw

    return register


def rng_state(rng: np.random.Generator | int) -> Tree:
    """A random state, ``Tree(key=uint64[2], counter=uint64[4])``: a key drawn from `rng`, and counter 0.

    Args:
        rng: a `numpy.random.Generator`, which moves on, or an int that seeds one.

    Returns:
        The state, on the host.

    Raises:
        LayerError: for anything else (a TypeError).
    """
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        rng = np.random.default_rng(int(rng))
    if not isinstance(rng, np.random.Generator):
        raise LayerError(f"expected a numpy.random.Generator or an int, got {describe(rng)}; culux.random.rng_state(0)")
    key = rng.integers(0, 2**64, size=2, dtype=np.uint64)
    return Tree(key=key, counter=np.zeros(4, np.uint64))


def uniform(
    state: Tree, shape: Sequence[int] | int, dtype: Any = np.float32, *, like: Array = None
) -> tuple[Array, Tree]:
    """Uniform numbers in [0, 1), as ``Generator(Philox(key, counter)).random(shape, dtype)`` gives them.

    The counter moves on by the blocks of four 64-bit words that were begun: ceil(n / 8) for n float32
    numbers (two to a word, the low half first), ceil(n / 4) for float64. Draws one after another thus
    never overlap.

    Args:
        state: what `rng_state` or an earlier draw returned.
        shape: the shape of the result.
        dtype: float32 or float64.
        like: an array; the numbers come on its device. None: on the state's.

    Returns:
        The numbers, and the state after them, on the device of `state`.

    Raises:
        DTypeError: for another dtype, or a `state` that is none.
    """
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise DTypeError(
            f"expected float32 or float64, got {kind}; draw float32 and convert (a smaller dtype rounds up to 1)"
        )
    check_state(state)
    sizes = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    backend = backend_of(state.key, state.counter)
    draw = _implementations.get(backend.name, _draw_on_host)
    numbers, counter = draw(state.key, state.counter, math.prod(sizes), kind)
    numbers = numbers.reshape(sizes)
    return (numbers if like is None else _there(numbers, like)), state.replace(counter=counter)


def dropout_mask(state: Tree, p: float, shape: Sequence[int] | int, like: Array = None) -> tuple[Array, Tree]:
    """A mask that keeps with probability ``1 - p``: ``uniform(state, shape) >= p``, p rounded to float32.

    Args:
        state: what `rng_state` or an earlier draw returned.
        p: the probability of False, the element being dropped.
        shape: the shape of the mask.
        like: an array; the mask comes on its device. None: on the state's.

    Returns:
        The mask, bool, and the state after it: the counter has moved on by ceil(n / 8).
    """
    numbers, after = uniform(state, shape, like=like)
    return numbers >= np.float32(p), after


def advance(counter: np.ndarray, blocks: int) -> np.ndarray:
    """``counter + blocks`` modulo 2**256, the counter being four uint64 words, the lowest first."""
    total = int.from_bytes(counter.astype("<u8").tobytes(), "little") + blocks
    return np.frombuffer((total % 2**256).to_bytes(32, "little"), "<u8").astype(np.uint64)


def _draw_on_host(key: Array, counter: Array, n: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The portable draw: NumPy's own generator, and a copy to the state's device."""
    backend = backend_of(key, counter)
    index = backend.place_of(key).index
    host_key, host_counter = backend.to_host(key), backend.to_host(counter)
    generator = np.random.Generator(np.random.Philox(key=host_key, counter=host_counter))
    numbers = generator.random(n, dtype=dtype)
    blocks = -(-n * dtype.itemsize // (8 * _WORDS_PER_BLOCK))
    return backend.from_host(numbers, index), backend.from_host(advance(host_counter, blocks), index)


def _there(numbers: Array, like: Array) -> Array:
    """The numbers on the device of `like`."""
    source, array = backend_of(numbers), untraced(like)
    target: Backend = backend_of(array)
    if source is target:
        return source.move(numbers, target.place_of(array).index)
    return target.from_host(source.to_host(numbers), target.place_of(array).index)


def check_state(state: Tree) -> None:
    """Raise a `DTypeError` where `state` is no random state, ``Tree(key=uint64[2], counter=uint64[4])``."""
    for name, words in (("key", 2), ("counter", 4)):
        array = state[name]
        if getattr(array, "shape", None) != (words,) or str(array.dtype).rpartition(".")[2] != "uint64":
            raise DTypeError(
                f"expected a random state Tree(key=uint64[2], counter=uint64[4]), got {name} = {describe(array)};"
                " make one with culux.random.rng_state"
            )


implementation("cupy")(philox.uniform)
