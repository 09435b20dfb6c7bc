"""Layers as values: what a layer may hold, its names, equality, copies, and how it prints."""

from __future__ import annotations

import copy
import pickle
from typing import Generic, TypeVar

import numpy as np
import pytest

import culux
from culux.errors import LayerError
from tests.core_examples import Affine, Block, ByHand, Plain, Wrap
from tests.support import requires

# What a layer may hold, and its names


@pytest.mark.parametrize("value", [np.ones(2), [np.ones(2)], {"a": {"b": np.ones(2)}}])
def test_arrays_in_fields_are_refused(value):
    with pytest.raises(LayerError, match=r"holds a float64 array.*initial_parameters\(self, rng\).*initial_states"):
        Affine(3, value)


def test_a_stateful_layer_is_no_child():
    m = culux.StatefulLayer(Affine(3), *culux.setup(0, Affine(3)))
    for make in (lambda: culux.Chain(m), lambda: culux.WrappedFunction(m)):
        with pytest.raises(LayerError, match=r"holds a StatefulLayer, which holds arrays.*m\.layer"):
            make()
    with pytest.raises(LayerError, match="expected a layer, got StatefulLayer"):
        culux.setup(0, m)


def test_traced_and_foreign_arrays_in_fields_are_refused():
    with pytest.raises(LayerError, match="a layer holds no arrays"):
        culux.gradient(lambda x: Affine(3, x).offset.sum(), np.ones(2))
    torch = requires("torch")
    with pytest.raises(LayerError, match="a layer holds no arrays"):
        Affine(3, torch.ones(2))


@pytest.mark.parametrize("value", [Plain(), (Plain(),), {"a": Plain()}])
def test_layers_in_fields_of_plain_layers_are_refused(value):
    with pytest.raises(LayerError, match=r"Affine\.offset holds a layer, .*subclass culux.ContainerLayer"):
        Affine(3, value)


@pytest.mark.parametrize("name", ["keys", "values", "items", "update", "copy", "get", "pop", "a.b", ""])
def test_names_of_dict_methods_and_dots_are_refused(name):
    with pytest.raises(LayerError, match="cannot name an entry or a layer"):
        culux.Chain(**{name: Plain()})

    class Named(culux.Layer):
        def initial_states(self, rng):
            return {name: 1}

    with pytest.raises(LayerError, match="cannot name an entry or a layer"):
        culux.setup(0, Named())


def test_names_that_would_hide_a_method_are_refused():
    with pytest.raises(LayerError, match="the name 'children' would hide the method of a layer"):
        culux.Chain(children=Plain())

    class Hides(culux.Layer):
        output_shape: int

    with pytest.raises(LayerError, match=r"Hides\.output_shape would hide the method output_shape"):
        Hides(3)

    class Fine(culux.Layer):
        values: int

    assert Fine(3).values == 3


# Values


T = TypeVar("T")


class Parametrised(culux.Layer, Generic[T]):
    width: int


def test_generic_layers():
    assert Parametrised[int](3) == Parametrised(3)


@pytest.mark.parametrize("layer", [Affine(3), ByHand(3, twice=True), Block(Affine(2), Plain()), Wrap(Plain()), Plain()])
def test_layers_are_values(layer):
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert other == layer
        assert hash(other) == hash(layer)
        assert repr(other) == repr(layer)
        assert list(other.children()) == list(layer.children())
    assert layer != Affine(4)
    assert layer != 3
    assert len({layer, copy.deepcopy(layer)}) == 1


def test_a_layer_is_compared_without_its_arrays():
    class Never:
        def __eq__(self, other):
            raise AssertionError("arrays were compared")

        __hash__ = object.__hash__

    shared = Never()
    assert Affine(3, shared) == Affine(3, shared)


@pytest.mark.parametrize(
    "layer",
    [
        Affine(3),
        Affine(3, 2.0),
        Affine(3, offset=1.0),
        Block(Affine(2), Plain(), (Plain(),)),
        Block(Affine(2), Plain(), heads={"a": [Plain()]}),
        ByHand(3),
    ],
)
def test_the_repr_is_the_constructor_call(layer):
    assert eval(repr(layer)) == layer


def test_the_repr_of_a_layer_that_keeps_an_argument_under_another_name():
    class Hidden(culux.Layer):
        def __init__(self, width, *, scale=2):
            self.size = width

    assert repr(Hidden(3)) == "Hidden(...)"


def test_print_shows_the_tree_with_counts():
    text = str(culux.Chain(body=Block(Affine(1000), Plain()), head=Plain()))
    assert text.splitlines() == [
        "Chain(",
        "    body = Block(",
        "        conv = Affine(1000)  # 1,000 parameters, plus 1,001 states",
        "        norm = Plain()",
        "    )",
        "    head = Plain()",
        ")",
        "total: 1,000 parameters, plus 1,001 states",
    ]
    assert str(Plain()) == "Plain()\ntotal: no parameters"
