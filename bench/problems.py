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
