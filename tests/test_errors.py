"""The errors: classes, paths in the model, and answers to the spellings of other frameworks."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import culux
from culux import errors
from culux.errors import CuluxError, DeviceError, EntryError, LayerError, ShapeError
from culux.layers import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    FlattenLayer,
    LayerNorm,
    NoOpLayer,
    Parallel,
    Scale,
    SkipConnection,
)
from culux.nn import relu
from tests.standin_cupy.fixture import standin_cupy as standin_cupy

X = np.ones((32, 64), np.float32)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ShapeError, ValueError),
        (errors.DTypeError, TypeError),
        (errors.DeviceError, RuntimeError),
        (errors.DifferentiationError, TypeError),
        (errors.LayerError, TypeError),
        (errors.CheckError, AssertionError),
        (errors.CheckpointError, ValueError),
        (errors.KernelError, RuntimeError),
        (errors.EntryError, KeyError),
        (errors.EntryError, AttributeError),
        (errors.FrozenError, AttributeError),
        (errors.SpellingError, AttributeError),
    ],
)
def test_errors_are_what_a_python_programmer_would_catch(kind, builtin):
    assert issubclass(kind, builtin)
    assert issubclass(kind, CuluxError)
    assert str(kind("expected 'this'")) == "expected 'this'"
    assert str(pickle.loads(pickle.dumps(kind("text")))) == "text"
    assert kind.__name__ in errors.__all__


def error_of(model, x=X, ps=None, st=None):
    made = culux.setup(0, model)
    with pytest.raises(CuluxError) as caught:
        model(x, made[0] if ps is None else ps, made[1] if st is None else st)
    return str(caught.value)


# Paths


def test_the_message_of_the_design():
    message = "expected x.shape[-1] == 128, got 64 (x has shape (32, 64))"
    assert error_of(Chain(relu, Dense(128, 10))) == f"in layer_2 (Dense(128, 10)): {message}"
    assert error_of(Dense(128, 10)) == f"in Dense(128, 10): {message}"


def test_nested_paths():
    dense = Dense(128, 10)
    inner = Chain(NoOpLayer(), dense)
    assert error_of(Chain(relu, inner)).startswith("in layer_2.layer_2 (Dense(128, 10)): ")
    assert error_of(Chain(body=Chain(head=inner))).startswith("in body.head.layer_2 (Dense(128, 10)): ")
    assert error_of(Chain(relu, Parallel(None, relu, dense))).startswith("in layer_2.layer_2 (Dense(128, 10)): ")
    assert error_of(Chain(SkipConnection(inner, np.add))).startswith("in layer_1.layers.layer_2 (Dense(128, 10)): ")


def test_paths_through_views():
    class Block(culux.ContainerLayer):
        tail: tuple

        def forward(self, m, x):
            return m.tail[1](m.tail[0](x))

    assert error_of(Chain(Block((relu_layer(), Dense(128, 10))))).startswith("in layer_1.tail_2 (Dense(128, 10)): ")
    m = culux.StatefulLayer(Chain(Dense(128, 10)), *culux.setup(0, Chain(Dense(128, 10))))
    with pytest.raises(ShapeError, match=r"^in layer_1 \(Dense\(128, 10\)\): expected"):
        m(X)
    with pytest.raises(ShapeError, match=r"^in Dense\(128, 10\): expected"):
        m.layer_1(X)


def relu_layer():
    return Chain(relu)[0]


def test_one_layer_under_two_names_is_told_apart():
    square = Dense(64, 64)
    ps, st = culux.setup(0, Chain(square, square))
    for name in ps:
        broken = ps.replace({f"{name}.weight": np.ones((2, 2), np.float32)})
        assert error_of(Chain(square, square), ps=broken, st=st).startswith(
            f"in {name} (Dense(64, 64)): expected ps.weight"
        )
    reshape = Chain(Dense(64, 32), relu)
    assert error_of(Chain(reshape, reshape)).startswith(
        "in layer_2.layer_1 (Dense(64, 32)): expected x.shape[-1] == 64"
    )
    with pytest.raises(ShapeError, match=r"^in layer_2.layer_1 \(Dense\(64, 32\)\): "):
        culux.output_shape(Chain(reshape, reshape), (1, 64))


def test_an_error_holds_no_arrays():
    model = Chain(relu, Dense(128, 10))
    ps, st = culux.setup(0, model)
    with pytest.raises(ShapeError) as caught:
        model(X, ps, st)
    held = [getattr(location, name) for location in vars(caught.value).values() for name in location.__slots__]
    assert held
    assert all(isinstance(part, str | list | tuple | None) for part in held)
    assert [type(part) for part in culux.tree.leaves(held)] == [str, int, int, str]


# Parameters that do not fit


def test_parameters_of_another_model():
    model = Chain(Dense(64, 8), BatchNorm(8), Dense(8, 2))
    ps, st = culux.setup(0, model)
    other, other_st = culux.setup(0, Chain(Dense(64, 8), BatchNorm(8)))
    text = error_of(model, ps=other)
    assert (
        "expected ps to have the entries layer_1, layer_2, layer_3, got layer_1, layer_2; ps is of another model"
        in text
    )
    assert "expected st to have the entries layer_1, layer_2, layer_3, got layer_1, layer_2" in error_of(
        model, st=other_st
    )
    text = error_of(model, ps=ps.replace({"layer_3.weight": np.ones((2, 9), np.float32)}))
    assert text == (
        "in layer_3 (Dense(8, 2)): expected ps.weight of shape (2, 8), got float32 array of shape (2, 9); ps is of "
        "another model: ps, st = culux.setup(rng, model)"
    )
    text = error_of(model, ps=culux.Tree({**ps, "layer_3": {"weight": ps.layer_3.weight}}))
    assert "in layer_3 (Dense(8, 2)): expected ps.bias of shape (2,), got the entries weight; ps is of another" in text
    text = error_of(model, st=culux.Tree({**st, "layer_2": {"training": True}}))
    assert (
        "in layer_2 (BatchNorm(8)): expected st.running_mean of shape (8,), got the entries training; st is of" in text
    )
    text = error_of(model, ps=culux.Tree({**ps, "layer_2": {"scale": np.ones(7), "bias": np.ones(8)}}))
    assert "in layer_2 (BatchNorm(8)): expected ps.scale of shape (8,), got float64 array of shape (7,)" in text


def test_swapped_ps_and_st():
    model = Chain(Dense(64, 8))
    ps, st = culux.setup(0, model)
    assert "in layer_1 (Dense(64, 8)): expected ps.weight of shape (8, 64), got the entries none" in error_of(
        model, ps=st, st=ps
    )


def test_a_missing_entry_of_a_custom_layer():
    class Mine(culux.Layer):
        def __call__(self, x, ps, st):
            return x * ps.wieght, st

    with pytest.raises(
        EntryError, match=r"^in layer_1 \(Mine\(\)\): expected an entry 'wieght' \(did you mean 'weight'\?\)"
    ):
        Chain(Mine())(X, {"layer_1": {"weight": 1.0}}, {"layer_1": {}})


@pytest.mark.parametrize("layer", [Dense(64, 8), BatchNorm(64), LayerNorm(64), Scale(64)], ids=repr)
def test_arrays_on_two_devices(layer, standin_cupy):
    model = Chain(layer)
    ps, st = culux.setup(0, model)
    device = culux.gpu_device(force=True)
    with pytest.raises(DeviceError, match=re.escape(f"in layer_1 ({layer!r}): ")) as caught:
        model(device(X), ps, st)
    assert "cpu (numpy)" in str(caught.value)
    assert "cuda:0 (cupy)" in str(caught.value)


def test_arrays_on_two_devices_have_their_names(standin_cupy):
    def text_of(layer, x, ps, st):
        with pytest.raises(DeviceError) as caught:
            Chain(layer)(x, culux.Tree(layer_1=ps), culux.Tree(layer_1=st))
        return str(caught.value)

    device = culux.gpu_device(force=True)
    for layer, name in ((Dense(64, 8), "weight"), (BatchNorm(64), "scale"), (LayerNorm(64), "scale")):
        ps, st = culux.setup(0, layer)
        where = f"in layer_1 ({layer!r}): expected all arrays on one device, got: "
        there = where + f"x is on cuda:0 (cupy), ps.{name} is on cpu (numpy); move them together"
        for mode in (culux.train_mode, culux.test_mode):
            assert text_of(layer, device(X), ps, device(mode(st))).startswith(there)
            here = where + f"x is on cpu (numpy), ps.{name} is on cuda:0 (cupy); move them together"
            assert text_of(layer, X, device(ps), mode(st)).startswith(here)
    layer = BatchNorm(64)
    ps, st = culux.setup(0, layer)
    for mode in (culux.train_mode, culux.test_mode):
        text = text_of(layer, device(X), device(ps), mode(st))
        assert "x is on cuda:0 (cupy), st.running_mean is on cpu (numpy)" in text


# Other frameworks' spellings


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: Dense(2, 4, False), "Dense: expected activation to be a function such as culux.relu, got bool False; "
                                     "the bias is switched by Dense(2, 4, use_bias=False)"),
        (lambda: Dense(2, 4, "relu"), "Dense: expected activation to be a function such as culux.relu, got str 'relu'"),
        (lambda: Dense(2, 4, None), "expected activation to be a function such as culux.relu, got NoneType None"),
        (lambda: BatchNorm(64, 1e-3), "epsilon is a keyword: BatchNorm(64, epsilon=0.001)"),
        (lambda: BatchNorm(64, False), "scale and bias are switched by BatchNorm(64, affine=False)"),
        (lambda: LayerNorm(64, 1e-6), "epsilon is a keyword: LayerNorm(64, epsilon=1e-06)"),
        (lambda: Dense(in_features=2, out_features=4),
         "Dense takes no in_features=; culux calls it in_dims, the first argument: Dense(in_dims, out_dims)"),
        (lambda: Dense(2, 4, bias=False), "Dense takes no bias=; culux calls it use_bias (True or False)"),
        (lambda: Dense(2, 4, act=relu), "Dense takes no act=; culux calls it activation"),
        (lambda: Dense(2, 4, use_bais=False), "Dense takes no use_bais= (did you mean 'use_bias'?); it takes in_"),
        (lambda: Dense(2, 4, relu, False), "it is Dense(in_dims, out_dims, activation=identity, *, use_bias=True, "),
        (lambda: Dense(2), "Dense: missing a required argument: 'out_dims'; it is Dense(in_dims, out_dims, "),
        (lambda: BatchNorm(num_features=3), "culux calls it channels, the first argument: BatchNorm(channels)"),
        (lambda: BatchNorm(3, eps=1e-3), "BatchNorm takes no eps=; culux calls it epsilon"),
        (lambda: BatchNorm(3, track_running_stats=False), "culux calls it track_stats"),
        (lambda: LayerNorm(normalized_shape=3), "culux calls it shape, the first argument: LayerNorm(shape)"),
        (lambda: LayerNorm(3, elementwise_affine=False), "takes no elementwise_affine=; culux calls it affine"),
        (lambda: Dropout(rate=0.5), "Dropout takes no rate=; culux calls it p, the first argument: Dropout(p)"),
        (lambda: Parallel(), "'connection'; it is Parallel(connection, /, *layers, **named)"),
        (lambda: Parallel(a=relu), "'connection'; it is Parallel(connection, /, *layers, **named)"),
        (lambda: FlattenLayer(3), "FlattenLayer: too many positional arguments; it is FlattenLayer()"),
        (lambda: FlattenLayer(start=1), "FlattenLayer takes no start=; it takes no keywords"),
        (lambda: LayerNorm(3, bias=False), "LayerNorm takes no bias=; it takes shape, activation, affine, epsilon"),
    ],
)  # fmt: skip
def test_arguments_of_other_frameworks_get_the_culux_form(call, answer):
    with pytest.raises(LayerError, match=re.escape(answer)):
        call()


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda m: m.eval(), "the layer Chain has no .eval(): a layer has no mode: call it with culux.test_mode(st)"),
        (lambda m: m.train(), "call it with culux.train_mode(st)"),
        (lambda m: m.parameters(), "ps, st = culux.setup(rng, model); culux.tree.leaves(ps)"),
        (lambda m: m.to("cuda"), "a layer holds no arrays: move them with ps, st = device(ps), device(st)"),
        (lambda m: m.cuda(), "device = culux.gpu_device(); ps, st = device(ps), device(st)"),
        (lambda m: m.state_dict(), "culux.serialization.save(path, culux.Tree(ps=ps, st=st))"),
        (lambda m: m.forward(X), "call the layer: y, st = layer(x, ps, st)"),
        (lambda m: m.zero_grad(), "grads = culux.gradient(loss, ps)"),
    ],
)
def test_methods_of_other_frameworks_get_the_culux_form(call, answer):
    with pytest.raises(AttributeError, match=re.escape(answer)):
        call(Chain(Dense(2, 4)))


def test_loss_backward_gets_the_culux_form():
    with pytest.raises(AttributeError, match=re.escape("grads = culux.gradient(loss, ps)")):
        culux.gradient(lambda x: (x * x).sum().backward(), np.ones(2))


def test_an_unknown_attribute_is_an_attribute_error():
    assert not hasattr(Dense(2, 4), "wieght")
    with pytest.raises(AttributeError, match="the layer Dense has no attribute 'wieght'"):
        Dense(2, 4).wieght  # noqa: B018 (the access is the test)
    with pytest.raises(
        AttributeError, match="the layer Chain has no attribute 'layer_3'; its layers are: layer_1, layer_2"
    ):
        Chain(relu, relu).layer_3  # noqa: B018 (the access is the test)
    assert copy.copy(Dense(2, 4)) == Dense(2, 4)
