"""GroupNorm and InstanceNorm: against torch, their running statistics, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import GroupNorm, InstanceNorm, nn
from culux.errors import DTypeError, LayerError, ShapeError
from tests.arrays import normal


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 6), 2), ((2, 6, 5), 6), ((2, 6, 3, 5), 1), ((1, 4, 2, 3, 1), 2), ((3, 1, 7), 1)]
)
def test_groupnorm_against_torch(shape, groups, dtype):
    torch = pytest.importorskip("torch")
    arrays = [normal(*shape, dtype=dtype) * 3 + 2, normal(shape[1], seed=1), normal(shape[1], seed=2)]
    arrays = [a.astype(dtype) for a in arrays]
    y, pullback = culux.vjp(lambda x, s, b: nn.groupnorm(x, s, b, groups=groups), *arrays)
    dy = normal(*shape, seed=3, dtype=dtype)
    theirs = [torch.tensor(a.astype("float64"), requires_grad=True) for a in arrays]
    expected = torch.nn.functional.group_norm(theirs[0], groups, *theirs[1:])
    expected.backward(torch.tensor(dy.astype("float64")))
    tolerance = 1e-11 if dtype == "float64" else 3e-5
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    for found, tensor in zip(pullback(dy), theirs, strict=True):
        np.testing.assert_allclose(found, tensor.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_half_precision_sums_in_float32():
    x = (normal(2, 4, 40, 40) + 100).astype(np.float16)
    y = nn.groupnorm(x, np.ones(4, np.float32), None, groups=2)
    wide = x.astype(np.float64).reshape(2, 2, -1)
    expected = ((wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)


def test_an_empty_batch():
    assert nn.groupnorm(np.ones((0, 4, 3)), None, None, groups=2).shape == (0, 4, 3)


def test_running_statistics_against_torch():
    torch = pytest.importorskip("torch")
    layer = InstanceNorm(3, affine=True, track_stats=True, momentum=0.3)
    theirs = torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True, momentum=0.3)
    ps, st = culux.setup(0, layer)
    for seed in range(3):
        x = normal(4, 3, 2, 5, seed=seed, dtype=np.float32) * 2 + 1
        y, st = layer(x, ps, st)
        np.testing.assert_allclose(y, theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(st.running_mean, theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(st.running_var, theirs.running_var.numpy(), rtol=1e-5)
    y, same = layer(x, ps, culux.test_mode(st))
    np.testing.assert_allclose(y, theirs.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert same == culux.test_mode(st)


def test_a_gradient_leaves_plain_statistics():
    layer = InstanceNorm(3, track_stats=True)
    ps, st = culux.setup(0, layer)
    x = normal(2, 3, 5, dtype=np.float32)
    (_, after), _ = culux.value_and_gradient(lambda x: ((y := layer(x, ps, st))[0].sum(), y[1]), x, has_aux=True)
    assert type(after.running_mean) is np.ndarray
    assert after.running_var.dtype == np.float32


def test_the_mode_changes_nothing_without_running_statistics():
    layer = InstanceNorm(3)
    ps, st = culux.setup(0, layer)
    x = normal(2, 3, 4, dtype=np.float32)
    np.testing.assert_array_equal(layer(x, ps, st)[0], layer(x, ps, culux.test_mode(st))[0])


def test_refusals():
    with pytest.raises(
        LayerError, match=r"groups to divide channels, got 64 groups of 32 .* first; GroupNorm\(64, 32\)"
    ):
        GroupNorm(32, 64)
    with pytest.raises(LayerError, match=r"got 4 groups of 6 channels; the channels come first$"):
        GroupNorm(6, 4)
    with pytest.raises(LayerError, match="GroupNorm: expected groups to be a positive int, got int 0"):
        GroupNorm(6, 0)
    with pytest.raises(LayerError, match=r"epsilon is a keyword: GroupNorm\(6, 3, epsilon=0.001\)"):
        GroupNorm(6, 3, 1e-3)
    with pytest.raises(LayerError, match=r"culux calls it groups, the second argument: GroupNorm\(channels, groups\)"):
        GroupNorm(channels=6, num_groups=3)
    with pytest.raises(LayerError, match=r"scale and bias are switched by InstanceNorm\(6, affine=True\)"):
        InstanceNorm(6, True)
    with pytest.raises(LayerError, match=r"InstanceNorm: expected momentum to be a number between 0 and 1, got int 2"):
        InstanceNorm(6, momentum=2)
    for layer in (GroupNorm(6, 3), InstanceNorm(6)):
        ps, st = culux.setup(0, layer)
        with pytest.raises(ShapeError, match=r"expected x.shape\[1\] == 6, got 5 \(x has shape \(2, 5, 3\)\)"):
            layer(normal(2, 5, 3), ps, st)
    ps, st = culux.setup(0, GroupNorm(6, 3))
    with pytest.raises(ShapeError, match=r"expected ps.scale of shape \(6,\), got float32 array of shape \(4,\)"):
        GroupNorm(6, 3)(normal(2, 6), ps.replace(scale=np.ones(4, np.float32)), st)


def test_what_the_functions_refuse():
    x = normal(2, 6, 3)
    with pytest.raises(LayerError, match="groupnorm: expected groups to divide the 6 channels, got 4"):
        nn.groupnorm(x, None, None, groups=4)
    with pytest.raises(ShapeError, match=r"groupnorm: expected bias of shape \(6,\), got \(5,\) \(x has shape"):
        nn.groupnorm(x, None, np.ones(5), groups=3)
    with pytest.raises(ShapeError, match=r"groupnorm: expected x of shape \(batch, channels, \*spatial\), got \(6,\)"):
        nn.groupnorm(x[0, :, 0], None, None, groups=3)
    with pytest.raises(DTypeError, match="groupnorm: expected x to be a float array, got int64"):
        nn.groupnorm(np.ones((2, 6), int), None, None, groups=3)
    for shape in ((2, 6), (2, 6, 1, 1)):
        with pytest.raises(ShapeError, match=r"instancenorm: expected (x of shape|more than one spatial element)"):
            nn.instancenorm(normal(*shape), None, None, None, None, training=True)
