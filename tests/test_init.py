"""Initialisers: calls, variants, fans and gains, the bounds of torch, and errors."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

from culux import init, nn
from culux.errors import LayerError, ShapeError
from tests.support import requires

RECORDS = {name: getattr(init, name) for name in init.__all__ if isinstance(getattr(init, name), init.Initialiser)}


def made(record, shape, seed=0, dtype=np.float32):
    return record(np.random.default_rng(seed), shape, dtype)


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_named_compared_and_copied(name):
    record = RECORDS[name]
    assert repr(record) == name
    for other in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), record()):
        assert other == record
        assert hash(other) == hash(record)
    assert [r for r in RECORDS.values() if r == record] == [record]


def test_called_with_parameters_it_is_another_record():
    assert init.normal(0, 0.02) == init.normal(std=0.02) == init.normal.replace(std=0.02) != init.normal
    assert repr(init.normal(1.0, 0.02)) == "normal(mean=1.0, std=0.02)"
    assert eval(repr(init.uniform(-1, 1)), vars(init)) == init.uniform(-1, 1)


def test_arrays_have_the_shape_and_dtype_asked_for():
    for shape in ((4, 3), [4, 3], (4, 3, 2)):
        for dtype in (np.float16, np.float32, np.float64):
            array = made(init.glorot_uniform, shape, dtype=dtype)
            assert array.shape == tuple(shape)
            assert array.dtype == dtype
    assert init.ones(rng=np.random.default_rng(0), shape=()).shape == ()
    assert init.zeros(np.random.default_rng(0), 3).shape == (3,)


def test_a_seed_gives_the_same_numbers_in_every_dtype():
    wide = made(init.normal, (5, 5), dtype=np.float64)
    np.testing.assert_array_equal(made(init.normal, (5, 5)), wide.astype(np.float32))
    assert (made(init.normal, (5, 5), seed=1) != wide).all()


def test_the_generator_moves_on():
    rng = np.random.default_rng(0)
    assert (init.uniform(rng, (4,)) != init.uniform(rng, (4,))).all()


def test_fans():
    assert init.fans((5, 3)) == (3, 5)
    assert init.fans((8, 4, 3, 2)) == (24, 48)
    assert init.fans((7,)) == (1, 7)
    with pytest.raises(ShapeError, match=r"expected a shape \(out, in, \*kernel\), got \(\); a scalar has no fans"):
        init.fans(())


@pytest.mark.parametrize("name", ["linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_are_those_of_torch(name):
    torch = requires("torch")
    assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


def test_gains_of_records():
    assert init.calculate_gain(nn.relu) == math.sqrt(2)
    assert init.calculate_gain(nn.LeakyRelu(1.0)) == init.calculate_gain("leaky_relu", 1.0) == 1
    assert init.calculate_gain(nn.identity) == 1
    with pytest.raises(LayerError, match=r"no gain is known for 'reluu' \(did you mean 'relu'\?\); give a number"):
        init.calculate_gain("reluu")


@pytest.mark.parametrize("shape", [(64, 100), (32, 8, 5, 5)])
@pytest.mark.parametrize(
    ("record", "spelling", "options"),
    [
        (init.glorot_uniform, "xavier_uniform_", {}),
        (init.glorot_normal, "xavier_normal_", {}),
        (init.kaiming_uniform, "kaiming_uniform_", {}),
        (init.kaiming_uniform(mode="fan_out"), "kaiming_uniform_", {"mode": "fan_out"}),
        (init.kaiming_normal, "kaiming_normal_", {}),
        (init.torch_uniform, "kaiming_uniform_", {"a": math.sqrt(5)}),
        (init.truncated_normal, "trunc_normal_", {}),
    ],
    ids=repr,
)
def test_spread_is_that_of_torch(record, spelling, options, shape):
    torch = requires("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn.init, spelling)(torch.empty(shape), **options).numpy()
    ours = made(record, shape)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.04)
    if "normal" not in spelling or spelling == "trunc_normal_":
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)


def test_the_identity_of_kernels_is_that_of_torch():
    torch = requires("torch")
    for shape in ((3, 5, 4), (5, 3, 3, 2), (2, 2, 1, 2, 3)):
        np.testing.assert_array_equal(made(init.identity, shape), torch.nn.init.dirac_(torch.empty(shape)).numpy())
    assert not made(init.identity, (5,)).any()


def test_orthogonal_is_uniform_over_rotations():
    # Without the signs of R the first element of Q would always be negative.
    signs = {bool(made(init.orthogonal, (3, 3), seed=seed)[0, 0] > 0) for seed in range(20)}
    assert signs == {True, False}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda rng: init.torch_uniform(rng, (5,)),
            ShapeError,
            r"for a bias give the weight's fan: torch_uniform\(fan",
        ),
        (
            lambda rng: init.orthogonal(rng, (5,)),
            ShapeError,
            r"orthogonal: expected a shape of two axes at least, got \(5,",
        ),
        (lambda rng: init.sparse(rng, (5, 4, 3)), ShapeError, r"sparse: expected a shape \(out, in\), got \(5, 4, 3\)"),
        (lambda rng: init.normal((3, 4)), LayerError, r"expected normal\(rng, shape, dtype=float32\) with rng a numpy"),
        (lambda rng: init.zeros(0), LayerError, r"or zeros with its parameters \(none\), got int 0"),
        (
            lambda rng: init.normal(sdt=1),
            LayerError,
            r"normal takes no sdt= \(did you mean 'std'\?\); it takes mean, std",
        ),
        (
            lambda rng: init.identity(shift=(1, 2))(rng, (5,)),
            ShapeError,
            r"identity: expected a shift for every axis of \(5,\), got \(1, 2\)",
        ),
        (lambda rng: init.kaiming_normal(mode="in"), LayerError, r"expected mode 'fan_in' or 'fan_out', got 'in'"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(np.random.default_rng(0))
