"""Initial values and data, the same for every library."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MLP:
    """A network of Dense layers; BatchNorm and relu follow every one but the last."""

    widths: tuple[int, ...]
    batch: int
    learning_rate: float = 1e-3

    def parameters(self, seed: int = 0) -> list[np.ndarray]:
        """Fresh copies: weight, bias (U(±1/sqrt(fan_in))), scale, bias, weight, bias, ... in the layers' order."""
        rng = np.random.default_rng(seed)
        arrays = []
        for fan_in, width in zip(self.widths, self.widths[1:], strict=False):
            bound = 1 / math.sqrt(fan_in)
            arrays += [rng.uniform(-bound, bound, (width, fan_in)), rng.uniform(-bound, bound, width)]
            arrays += [np.ones(width), np.zeros(width)]
        return [a.astype(np.float32) for a in arrays[:-2]]

    def data(self, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """One batch: standard normal inputs and integer labels."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, self.widths[0]), dtype=np.float32)
        return x, rng.integers(0, self.widths[-1], self.batch)


@dataclass(frozen=True)
class LeNet:
    """5x5 convolutions, the first with padding "same", each with relu and 2x2 max pooling; then Dense layers."""

    size: int = 28
    channels: tuple[int, int] = (6, 16)
    widths: tuple[int, ...] = (120, 84, 10)
    batch: int = 128
    learning_rate: float = 1e-3

    @property
    def features(self) -> int:
        """The inputs of the first Dense layer."""
        return self.channels[-1] * ((self.size // 2 - 4) // 2) ** 2

    def parameters(self, seed: int = 0) -> list[np.ndarray]:
        """Fresh copies: weight, bias, weight, bias, ... in the layers' order, all U(±1/sqrt(fan_in))."""
        rng, (first, second) = np.random.default_rng(seed), self.channels
        shapes: list[tuple[int, ...]] = [(first, 1, 5, 5), (second, first, 5, 5)]
        shapes += [(out, fan_in) for fan_in, out in zip((self.features, *self.widths), self.widths, strict=False)]
        arrays = []
        for shape in shapes:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            arrays += [rng.uniform(-bound, bound, shape), rng.uniform(-bound, bound, shape[0])]
        return [a.astype(np.float32) for a in arrays]

    def data(self, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """One batch: standard normal images and integer labels."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, 1, self.size, self.size), dtype=np.float32)
        return x, rng.integers(0, self.widths[-1], self.batch)


EPOCH = 20  # steps of an "epoch" on one batch
MLP7BN = MLP(widths=(32, 256, 256, 256, 256, 256, 256, 10), batch=256)
DIGITS = MLP(widths=(64, 128, 128, 10), batch=64)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits in [0, 1]: ``(x, labels, test_x, test_labels)``, split 80 to 20."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, labels = (data.data / 16).astype(np.float32)[order], data.target[order].astype(np.int64)
    train = len(x) * 4 // 5
    return x[:train], labels[:train], x[train:], labels[train:]
