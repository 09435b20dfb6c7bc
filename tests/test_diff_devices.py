"""`culux.testing.diff_devices`: it names the layer with a planted fault, and nothing in a right model."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux import Chain, Dense
from culux.errors import DeviceError, LayerError
from culux.testing import diff_devices

X = np.random.default_rng(0).standard_normal((5, 3), dtype=np.float32)


def on_gpu(x):
    return not isinstance(culux.stop_gradient(x), np.ndarray)


def model(function):
    """A model whose second layer's second layer is `function`."""
    layer = Chain(Dense(3, 4, culux.tanh), Chain(Dense(4, 4), function), culux.Dropout(0.5), Dense(4, 2))
    return layer, *culux.setup(0, layer)


def call(layer, x, ps, st):
    return layer(x, ps, st)[0]


def grads(layer, x, ps, st):
    return culux.gradient(lambda ps: (call(layer, x, ps, st) ** 2).sum(), ps)


@pytest.mark.parametrize("f", [call, grads])
def test_a_right_model_agrees(standin_cupy, f):
    layer, ps, st = model(culux.relu)
    assert diff_devices(f, layer, X, ps, st) is None


@pytest.mark.parametrize("f", [call, grads])
def test_the_layer_that_is_wrong_is_named(standin_cupy, f):
    layer, ps, st = model(lambda x: x + 0.01 if on_gpu(x) else x)
    found = diff_devices(f, layer, X, ps, st)
    assert (found.path, found.layer, found.leaf) == ("layer_2.layer_2", "WrappedFunction(<lambda>)", "y")
    a, b = found.values
    assert b - a == pytest.approx(0.01, rel=1e-3)
    text = str(found)
    assert text.startswith(f"layer_2.layer_2 (WrappedFunction(<lambda>)): y{list(found.index)} is {a:.6g} on cpu and ")
    assert "on cuda:0" in text
    assert "1.0e-04" in text or "0.0001" in text


def test_a_wrong_gradient_shows_in_the_result(standin_cupy):
    @culux.custom_gradient
    def wrong(x):
        return x * 1, lambda dy: dy * 2 if on_gpu(dy) else dy

    layer, ps, st = model(wrong)
    found = diff_devices(grads, layer, X, ps, st)
    assert (found.path, found.layer) == ("", "the result")
    assert found.leaf == "layer_1.weight"


def test_a_wrong_state_is_named(standin_cupy):
    class Counting(culux.Layer):
        def initial_states(self, rng):
            return {"count": np.zeros((), np.int64)}

        def __call__(self, x, ps, st):
            return x, {"count": st.count + (2 if on_gpu(x) else 1)}

    layer, ps, st = model(Counting())
    found = diff_devices(call, layer, X, ps, st)
    assert (found.path, found.leaf, found.values) == ("layer_2.layer_2", "st.count", (1, 2))


def test_the_tolerance_is_kept(standin_cupy):
    layer, ps, st = model(lambda x: x * 1.0005 if on_gpu(x) else x)
    assert diff_devices(call, layer, X, ps, st, tolerance=1e-3) is None
    assert diff_devices(call, layer, X, ps, st, tolerance=1e-4).path == "layer_2.layer_2"


@pytest.mark.parametrize(("here", "there"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, -np.inf)])
def test_what_is_not_finite_differs_from_other_values_only(standin_cupy, here, there):
    def f(x):
        return cnp.where(x > 0, there if on_gpu(x) else here, x)

    assert diff_devices(f, X).layer == "the result"
    assert diff_devices(lambda x: cnp.where(x > 0, here, x), X) is None


def test_other_layers_on_another_device(standin_cupy):
    one, other = Dense(3, 3), Dense(3, 3, culux.relu)
    ps, st = culux.setup(0, one)
    with pytest.raises(LayerError, match=r"the same layers on cpu and cuda:0, got Dense\(3, 3\) and"):
        diff_devices(lambda x, ps: (other if on_gpu(x) else one)(x, ps, st)[0], X, ps)
    with pytest.raises(LayerError, match="on cpu and cuda:0, got the result and Dense"):
        diff_devices(lambda x, ps: one(x, ps, st)[0] if on_gpu(x) else x, X, ps)


def test_another_tree_or_shape_on_another_device(standin_cupy):
    with pytest.raises(LayerError, match=r"the result to return the same tree on cpu and cuda:0, got a and b"):
        diff_devices(lambda x: {"b" if on_gpu(x) else "a": x}, X)
    with pytest.raises(LayerError, match=r"same shape and dtype on cpu and cuda:0, got float32 array of shape \(5"):
        diff_devices(lambda x: x[:2] if on_gpu(x) else x, X)


def test_without_a_gpu():
    with pytest.raises(DeviceError):
        diff_devices(lambda x: x, X)
