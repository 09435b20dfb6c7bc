"""Parameters, gradients and updates for the tests of the optimisers."""

from __future__ import annotations

import numpy as np

import culux
from culux import Tree, optim, tree
from tests.kernel_support import dtype_of


def parameters(seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return Tree(layer_1=Tree(weight=make(5, 3), bias=make(5)), layer_2=Tree(weight=make(2, 5), bias=make(2)))


def gradients(count, seed=1, like=None):
    rng = np.random.default_rng(seed)
    like = parameters() if like is None else like
    return [tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), like) for _ in range(count)]


def uneven(dtype="float64", seed=0):
    """Parameters of more than a chunk of the kernel, of odd sizes, of one element and of none."""
    rng = np.random.default_rng(seed)

    def make(*shape):
        return rng.standard_normal(shape).astype(dtype_of(dtype))

    first = Tree(weight=make(45, 46), bias=make(45))
    return Tree(first=first, deep=Tree(weight=make(3, 7), bias=make(1), scale=make(), nothing=make(0, 3)))


def uneven_gradients(count, dtype="float64"):
    return [uneven(dtype, seed) for seed in range(1, count + 1)]


def on(cupy, value):
    """Every array of a tree on the device."""
    return tree.map(cupy.asarray, value)


def steps(rule, ps, grads):
    state = optim.setup(rule, ps)
    for g in grads:
        state, ps = optim.update(state, ps, g)
    return state, ps


def assert_equal(found, expected):
    assert tree.structure(found) == tree.structure(expected)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(found, expected, rtol):
    """Arrays of any device against those of the host, of the same dtypes."""
    for a, b in zip(tree.leaves(culux.to_numpy(found)), tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype("float64"), b.astype("float64"), rtol=rtol, atol=rtol)


def by_hand(x, grads, learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-8):
    """Adam as the paper writes it."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x = x - learning_rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
    return x
