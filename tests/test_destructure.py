"""`destructure`: there and back, and differentiable both ways."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import Tree, errors, tree
from culux.optim import destructure


def parameters():
    rng = np.random.default_rng(0)
    return Tree(a=rng.standard_normal((3, 2)), b=Tree(c=rng.standard_normal(4), d=np.array(1.5)))


def difference(f, x, step=1e-6):
    """The gradient by central differences."""
    unit = np.eye(x.size) * step
    return np.array([(f(x + e) - f(x - e)) / (2 * step) for e in unit])


def test_the_vector_has_all_arrays_in_order_and_restores_them():
    ps = parameters()
    flat, restore = destructure(ps)
    np.testing.assert_array_equal(flat, np.concatenate([ps.a.ravel(), ps.b.c, [1.5]]))
    back = restore(flat * 2)
    assert type(back) is Tree
    tree.map(lambda x, y: np.testing.assert_array_equal(2 * x, y), ps, back)
    assert back.b.d.shape == ()


def test_dtypes_are_promoted_in_the_vector_and_restored():
    ps = Tree(a=np.ones(2, np.float16), b=np.ones(3, np.float32), c=np.ones(1, np.float64))
    flat, restore = destructure(ps)
    assert flat.dtype == np.float64
    assert [leaf.dtype for leaf in tree.leaves(restore(flat))] == ["float16", "float32", "float64"]
    assert destructure(ps.replace(c=np.ones(1, np.float32)))[0].dtype == np.float32


def test_other_leaves_stay():
    table = np.arange(3)
    flat, restore = destructure(Tree(w=np.ones(2), table=table, name="x", n=None))
    back = restore(np.zeros(2))
    assert flat.shape == (2,)
    assert back.table is table
    assert (back.name, back.n, back.w.tolist()) == ("x", None, [0, 0])


def test_tied_arrays_appear_once():
    w = np.ones(3)
    flat, restore = destructure({"a": w, "b": np.zeros(2), "c": w})
    assert flat.shape == (5,)
    back = restore(np.arange(5.0))
    assert back["a"] is back["c"]


def test_gradient_through_restore():
    ps = parameters()
    flat, restore = destructure(ps)

    def f(flat):
        ps = restore(flat)
        return (ps.a * ps.a).sum() * ps.b.d + (ps.b.c * ps.b.c * ps.b.c).sum()

    np.testing.assert_allclose(culux.gradient(f, flat), difference(f, flat), rtol=1e-7, atol=1e-8)


def test_gradient_through_the_vector():
    ps = parameters()
    weights = np.random.default_rng(1).standard_normal(11)

    def f(ps):
        flat, _ = destructure(ps)
        return (flat * flat * weights).sum()

    found = culux.gradient(f, ps)
    flat, restore = destructure(ps)
    expected = restore(difference(lambda x: (x * x * weights).sum(), flat))
    tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8), found, expected)


def test_gradient_of_another_dtype_comes_back_in_its_own():
    ps = Tree(a=np.ones(2, np.float32), b=np.ones(3))
    grads = culux.gradient(lambda ps: (destructure(ps)[0] * np.arange(5.0)).sum(), ps)
    assert (grads.a.dtype, grads.a.tolist(), grads.b.tolist()) == (np.float32, [0, 1], [2, 3, 4])


def test_a_second_derivative_goes_through_both():
    flat, restore = destructure(Tree(a=np.array([1.0, 2.0]), b=np.array([3.0])))

    def inner(flat):
        grads = culux.gradient(lambda ps: (ps.a * ps.a * ps.a).sum() * ps.b[0], restore(flat))
        return (destructure(grads)[0] * np.array([1.0, 10.0, 100.0])).sum()

    np.testing.assert_allclose(culux.gradient(inner, flat), difference(inner, flat), rtol=1e-7)


def test_what_cannot_be_destructured():
    with pytest.raises(errors.ShapeError, match="destructure: expected a tree with float arrays, got Tree"):
        destructure(Tree(n=3))
    _, restore = destructure(parameters())
    with pytest.raises(
        errors.ShapeError, match=r"expected a vector of shape \(11,\), got float64 array of shape \(10,\)"
    ):
        restore(np.ones(10))
