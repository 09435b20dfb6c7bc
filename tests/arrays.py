"""Arrays that tests compute with."""

from __future__ import annotations

import numpy as np


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
