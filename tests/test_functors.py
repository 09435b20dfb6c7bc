"""Functors: classes of the user's own that hold arrays."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import culux
from culux.errors import LayerError
from tests.core_examples import Affine


@culux.functor
class Model:
    A: Any
    B: Any
    name: str = "m"

    def __call__(self, x):
        return self.A @ self.B @ x

    def trainable(self):
        return {"B": self.B}


@culux.functor
@dataclass(frozen=True)
class Frozen:
    w: Any
    nested: Any
    labels: Any


@culux.functor
class Outer:
    inner: Any
    scale: Any


def test_a_functor_is_differentiated_by_its_trainable():
    m = Model(np.eye(3), np.full((3, 3), 2.0))
    found = culux.gradient(lambda m: m(np.arange(3.0)).sum(), m)
    assert list(found) == ["B"]
    np.testing.assert_array_equal(found.B, np.tile(np.arange(3.0), (3, 1)))
    assert type(m.B) is np.ndarray
    assert not isinstance(m, culux.Layer)


def test_a_functor_without_trainable_gives_all_float_arrays():
    m = Frozen(np.ones(3), {"a": np.ones(3), "i": np.arange(2)}, np.arange(3))
    found = culux.gradient(lambda m: (m.w * m.nested["a"] * 3.0).sum(), m)
    assert list(found) == ["w", "nested"]
    np.testing.assert_array_equal(found.nested.a, [3, 3, 3])
    assert found.nested.i is None


def test_a_functor_is_a_tree_node():
    m = {"models": [Model(np.eye(2), np.ones((2, 2)), "x")]}
    moved = culux.tree.map(lambda a: a + 1, m)["models"][0]
    assert type(moved) is Model
    assert moved.name == "x"
    np.testing.assert_array_equal(moved.B, np.full((2, 2), 2.0))
    np.testing.assert_array_equal(m["models"][0].B, np.ones((2, 2)))
    assert [path for path, _ in culux.tree.leaves_with_path(m)] == ["models.0.A", "models.0.B"]
    assert culux.cpu_device(dtype="float32")(m)["models"][0].A.dtype == np.float32


def test_functors_in_functors_say_themselves_what_is_trained():
    m = Outer(Model(np.eye(2), np.ones((2, 2))), np.float64(2) * np.ones(2))
    found = culux.gradient(lambda m: (m.scale * m.inner(np.ones(2))).sum(), m)
    assert [path for path, _ in culux.tree.leaves_with_path(found)] == ["inner.B", "scale"]
    np.testing.assert_array_equal(found.inner.B, np.full((2, 2), 2.0))


def test_a_functor_comes_out_of_a_trace_with_plain_arrays():
    m = Model(np.eye(2), np.ones((2, 2)))
    (_, seen), _ = culux.value_and_gradient(lambda m: (m(np.ones(2)).sum(), [m]), m, has_aux=True)
    assert type(seen[0]) is Model
    assert type(seen[0].B) is np.ndarray


def test_a_subclass_of_a_functor_has_its_own_fields():
    @culux.functor
    class More(Model):
        C: Any = None

    m = More(np.eye(2), np.ones((2, 2)), "x", np.ones(2))
    assert [path for path, _ in culux.tree.leaves_with_path(m)] == ["A", "B", "C"]
    assert m == m
    assert m != copy.copy(m)


def test_wrong_functors():
    with pytest.raises(LayerError, match="is a Layer, which holds no arrays; a functor is a class of its own"):
        culux.functor(Affine)

    @culux.functor
    class Wrong:
        A: Any

        def trainable(self):
            return {"B": self.A}

    with pytest.raises(LayerError, match=r"Wrong.trainable\(\) names B, which it has no field for; its fields are: A"):
        culux.gradient(lambda m: m.A.sum(), Wrong(np.ones(2)))
