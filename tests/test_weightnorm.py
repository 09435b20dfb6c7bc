"""WeightNorm: against torch's parametrisation, what it makes of a layer's parameters, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import Chain, Dense, WeightNorm
from culux.errors import EntryError, LayerError, ShapeError
from culux.layers import BatchNorm, Scale
from tests.arrays import normal


@pytest.mark.parametrize("dims", [0, 1, -1, None, (0, 1)])
def test_against_torch(dims):
    torch = pytest.importorskip("torch")
    layer = WeightNorm(Dense(3, 5), "weight", dims=dims)
    ps, st = culux.setup(0, layer)
    x = normal(7, 3, dtype=np.float32)
    v = torch.tensor(ps.normalized.weight_v, requires_grad=True)
    g = torch.tensor(ps.normalized.weight_g, requires_grad=True)
    if dims == (0, 1):  # a norm per element
        weight = v.sign() * g
    elif dims is None:
        weight = v * g / v.norm()
    else:
        weight = torch._weight_norm(v, g, dims % 2)
    expected = torch.nn.functional.linear(torch.tensor(x), weight, torch.tensor(ps.unnormalized.bias))
    (expected**2).sum().backward()
    y, grads = culux.value_and_gradient(lambda ps: (layer(x, ps, st)[0] ** 2).sum(), ps)
    np.testing.assert_allclose(y, (expected**2).sum().item(), rtol=1e-5)
    np.testing.assert_allclose(grads.normalized.weight_g, g.grad.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads.normalized.weight_v, v.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_a_new_one_computes_what_the_layer_does():
    x = normal(7, 3, dtype=np.float32)
    plain = Chain(Dense(3, 5), BatchNorm(5))
    wrapped = Chain(WeightNorm(Dense(3, 5), ("weight", "bias")), WeightNorm(BatchNorm(5), "scale", dims=None))
    y, _ = plain(x, *culux.setup(0, plain))
    ps, st = culux.setup(0, wrapped)
    found, after = wrapped(x, ps, st)
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-6)
    assert ps.layer_1.unnormalized == culux.Tree()
    assert ps.layer_1.normalized.bias_g.shape == (5,)
    assert np.any(after.layer_2.running_mean)
    assert culux.output_shape(wrapped, (7, 3)) == (7, 5)


def test_half_precision_stays():
    layer = WeightNorm(Dense(300, 2), "weight")
    ps, st = culux.setup(0, layer, dtype="float16")
    assert ps.normalized.weight_g.dtype == np.float16
    assert layer(normal(2, 300, dtype=np.float16), ps, st)[0].dtype == np.float16


def test_refusals():
    with pytest.raises(LayerError, match="WeightNorm: expected layer to be a layer, got function"):
        WeightNorm(lambda x: x, "weight")
    for names in ((), (3,), 3):
        with pytest.raises(LayerError, match='a name or a tuple of names of parameters, such as "weight", got'):
            WeightNorm(Dense(3, 5), names)
    with pytest.raises(LayerError, match="expected dims to be None, an int or a tuple, got str 'all'"):
        WeightNorm(Dense(3, 5), "weight", dims="all")
    with pytest.raises(LayerError, match=r"whose parameters are weight, bias; got 'wight'"):
        culux.setup(0, WeightNorm(Dense(3, 5), "wight"))
    with pytest.raises(LayerError, match=r"dims to be axes of weight, which has shape \(5, 3\), got 2"):
        culux.setup(0, WeightNorm(Dense(3, 5), "weight", dims=2))
    with pytest.raises(LayerError, match=r"bias of Scale\(3\) has a norm of zero, .*; leave it out of which_params"):
        culux.setup(0, WeightNorm(Scale(3), "bias"))
    layer = WeightNorm(Dense(3, 5), "weight")
    ps, st = culux.setup(0, layer)
    with pytest.raises(
        ShapeError, match=r"ps.normalized.weight_g of shape \(5, 1\), got float32 array of shape \(5,\)"
    ):
        layer(normal(2, 3), ps.replace({"normalized.weight_g": np.ones(5, np.float32)}), st)
    with pytest.raises(EntryError, match="expected an entry 'unnormalized', the entries are: weight, bias"):
        layer(normal(2, 3), culux.setup(0, Dense(3, 5))[0], st)
