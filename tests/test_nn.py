"""Functional operations beyond the catalogue: precision, dtypes, traced cotangents, errors."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import culux
from culux import nn
from culux.errors import DTypeError, LayerError, ShapeError
from culux.nn.batchnorm import _normalize_batch
from culux.nn.dense import _dense
from culux.random import rng_state
from tests.arrays import normal
from tests.support import requires


def numerical(f, x, step=1e-5):
    """The gradient of a scalar function by central differences."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        found[i] = (f(high) - f(low)) / (2 * step)
    return found


# Dense.


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "message"),
    [
        (normal(32, 64), normal(10, 128), None, ShapeError,
         r"^expected x\.shape\[-1\] == 128, got 64 \(x has shape \(32, 64\)\)$"),
        (np.array(1.0), normal(10, 128), None, ShapeError, r"expected x\.shape\[-1\] == 128, got no axis"),
        (normal(2, 3), normal(3), None, ShapeError, r"expected weight of shape \(out_dims, in_dims\), got \(3,\)"),
        (normal(2, 3), normal(4, 3), normal(3), ShapeError, r"expected bias of shape \(4,\), got \(3,\)"),
        (np.ones((2, 3), int), normal(4, 3), None, DTypeError,
         r"dense: expected x to be a float array, got int64 array of shape \(2, 3\); x\.astype\('float32'\)"),
        ([[1.0]], normal(4, 1), None, DTypeError, r"expected x to be a float array, got list \[\[1\.0\]\]"),
    ],
)  # fmt: skip
def test_dense_refuses_what_does_not_fit(x, weight, bias, error, message):
    with pytest.raises(error, match=message):
        nn.dense(x, weight, bias)


def test_dense_takes_a_bias_by_name_and_differentiates_it():
    x, weight = normal(3, 2), normal(4, 2)
    found = culux.gradient(lambda b: nn.dense(x, weight, bias=b).sum(), np.zeros(4))
    np.testing.assert_array_equal(found, [3, 3, 3, 3])


def test_dense_takes_functions_of_numpy_as_activations():
    x, weight = normal(3, 2), normal(4, 2)
    for function in (np.tanh, lambda z: np.exp(z) / (1 + np.exp(z))):
        np.testing.assert_allclose(nn.dense(x, weight, activation=function), function(x @ weight.T))
        found = culux.gradient(lambda w, f=function: nn.dense(x, w, activation=f).sum(), weight)
        np.testing.assert_allclose(found, numerical(lambda w, f=function: f(x @ w.T).sum(), weight), atol=1e-8)


def test_half_precision_accumulates_in_float32():
    x, weight = np.ones((1, 5000), np.float16), np.ones((1, 5000), np.float16)
    assert nn.dense(x, weight)[0, 0] == np.float16(5000)  # float16 stops counting at 2048
    dw = culux.gradient(lambda w: nn.dense(np.ones((5000, 1), np.float16), w).sum(), weight[:, :1])
    assert dw.dtype == np.float16
    assert dw[0, 0] == np.float16(5000)


def test_mixed_dtypes_promote_and_gradients_go_back():
    x, weight, bias = normal(3, 2), normal(4, 2, dtype=np.float32), normal(4, dtype=np.float32)
    assert nn.dense(x, weight, bias, activation=nn.relu).dtype == np.float64
    gradients = culux.gradient(lambda *a: nn.dense(*a, activation=nn.relu).sum(), x, weight, bias)
    assert [g.dtype for g in gradients] == [np.float64, np.float32, np.float32]


@pytest.mark.parametrize("activation", [nn.identity, nn.relu, nn.gelu, np.tanh])
def test_only_wanted_cotangents_are_computed(activation):
    x, weight, bias = normal(3, 2), normal(4, 2), normal(4)
    for needs in ((False, True, False), (True, False, True)):
        _, pullback = _dense.operation.vjp_rule(needs, x, weight, bias, activation=activation)
        assert tuple(g is not None for g in pullback(np.ones((3, 4)))) == needs
        _, pullback = _normalize_batch.operation.vjp_rule(
            needs, x, bias[:2], bias[2:], epsilon=1, activation=activation, running=None
        )
        assert tuple(g is not None for g in pullback(np.ones((3, 2)))) == needs


def test_pullbacks_keep_nothing_alive_that_they_do_not_read():
    x, scale, bias = normal(4, 3), normal(3), normal(3)
    y, normalized_back = _normalize_batch.operation.vjp_rule(
        (True, True, True), x, scale, bias, epsilon=1, activation=nn.relu, running=None
    )
    z, dense_back = _dense.operation.vjp_rule((True, True, True), y, normal(2, 3), None, activation=nn.identity)
    output, batch = weakref.ref(z.base), weakref.ref(x)
    del z, x
    assert output() is None
    assert batch() is None
    assert normalized_back(dense_back(np.ones((4, 2)))[0])[0].shape == (4, 3)


OPERATIONS = {
    "dense": lambda x: nn.dense(x, normal(3, 3, seed=1), normal(3), activation=nn.tanh),
    "batchnorm": lambda x: nn.batchnorm(x, normal(3), None, None, None, training=True, activation=nn.tanh)[0],
    "batchnorm-test": lambda x: nn.batchnorm(
        x, normal(3), normal(3), normal(3), np.ones(3), training=False, activation=nn.tanh
    )[0],
    "layernorm": lambda x: nn.layernorm(x, normal(3), None, ndim=1, activation=nn.gelu),
    "softmax": lambda x: nn.softmax(x) ** 2,
    "cross-entropy": lambda x: nn.softmax_cross_entropy(x, np.array([0, 2, 1, 1]), label_smoothing=0.1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_that_was_given_is_overwritten(name):
    x = normal(4, 3)
    y, pullback = culux.vjp(OPERATIONS[name], x)
    dy = normal(*y.shape, seed=5)
    before = x.copy(), y.copy(), dy.copy()
    (first,) = pullback(dy)
    kept = first.copy()
    (second,) = pullback(dy)
    for now, was in zip((x, y, dy, first, second), (*before, kept, kept), strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_pullback_takes_a_traced_cotangent(name):
    x = normal(4, 3)
    y, pullback = culux.vjp(OPERATIONS[name], x)
    direction, dy = normal(4, 3, seed=3), normal(*y.shape, seed=4)

    def inside(dy):
        (dx,) = culux.vjp(OPERATIONS[name], x)[1](dy)
        return (dx * direction).sum()

    np.testing.assert_allclose(culux.gradient(inside, dy), numerical(inside, dy), atol=1e-8)
    assert inside(dy) == pytest.approx((pullback(dy)[0] * direction).sum())


# Layer normalisation.


@pytest.mark.parametrize(
    ("ndim", "scale", "message"),
    [
        (0, None, r"expected ndim from 1 to 2, got 0 \(x has shape \(2, 3\)\)"),
        (3, None, r"expected ndim from 1 to 2, got 3"),
        (1, normal(2), r"expected scale of shape \(3,\), got \(2,\) \(x has shape \(2, 3\)\)"),
    ],
)
def test_layernorm_refuses_what_does_not_fit(ndim, scale, message):
    with pytest.raises(ShapeError, match=message):
        nn.layernorm(normal(2, 3), scale, None, ndim=ndim)


# Softmax and cross entropy.


def test_softmax_of_large_and_infinite_logits():
    x = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [-np.inf, 0, 0]], np.float32)
    np.testing.assert_allclose(nn.softmax(x), [[1, 0, 0], [1 / 3] * 3, [0, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(nn.logsumexp(x), [1e4, -1e4 + np.log(3), np.log(2)], rtol=1e-6)
    half = -np.log(2)
    np.testing.assert_allclose(nn.log_softmax(x), [[0, -1e4, -2e4], [-np.log(3)] * 3, [-np.inf, half, half]], rtol=1e-6)


def test_rows_of_nothing_but_minus_infinity():
    x = np.full((1, 3), -np.inf)
    assert nn.logsumexp(x).tolist() == [-np.inf]
    assert np.isnan(nn.softmax(x)).all()
    assert np.isnan(nn.log_softmax(x)).all()


def test_cross_entropy_of_large_logits():
    x, labels = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1])
    assert nn.softmax_cross_entropy(x, labels).tolist() == [0, 2e4]
    even = np.full((1, 3), 1e4, np.float32)
    for smoothing in (0.0, 0.3):
        loss = nn.softmax_cross_entropy(even, np.array([1]), label_smoothing=smoothing)
        np.testing.assert_allclose(loss, [np.log(3)], rtol=1e-6)
    found = culux.gradient(lambda x: nn.softmax_cross_entropy(x, labels).sum(), x)
    assert found.tolist() == [[0, 0], [1, -1]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_labels_of_every_integer_dtype(dtype):
    logits, labels = normal(4, 3), np.array([0, 2, 1, 2])
    expected = -nn.log_softmax(logits)[np.arange(4), labels]
    np.testing.assert_allclose(nn.softmax_cross_entropy(logits, labels.astype(dtype)), expected)


def test_ignored_examples_have_no_loss_and_no_gradient():
    logits, labels = normal(3, 4), np.array([1, 7, 2])
    logits[1] = np.nan
    loss = nn.softmax_cross_entropy(logits, labels, ignore_index=7)
    assert loss[1] == 0
    assert np.isfinite(loss).all()
    logits[1] = 0
    found = culux.gradient(lambda x: nn.softmax_cross_entropy(x, labels, ignore_index=7).sum(), logits)
    assert (found[1] == 0).all()
    assert (found[[0, 2]] != 0).all()


@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "message"),
    [
        (normal(2, 3), np.array([0, 3]), {}, ShapeError,
         r"expected labels from 0 to 2 \(3 classes\), got 3 at labels\[1\]; ignore_index= leaves a label out"),
        (normal(1, 3, 2), np.array([[0, -1]]), {}, ShapeError, r"\(3 classes\), got -1 at labels\[0, 1\]"),
        (normal(3, 3), np.array([-100, 1, 5]), {"ignore_index": -100}, ShapeError, r"got 5 at labels\[2\]$"),
        (normal(2, 3), np.array([0, 1, 2]), {}, ShapeError,
         r"expected labels of shape \(2,\), or probabilities of shape \(2, 3\), got \(3,\)"),
        (normal(3), np.array(0), {}, ShapeError, r"expected logits of shape \(N, C, \*spatial\), got \(3,\)"),
        (normal(2, 3), normal(2), {}, DTypeError, r"expected integer labels, got float64 array of shape \(2,\)"),
        (normal(2, 3), np.ones((2, 3), int), {}, DTypeError, r"labels of the logits' shape: expected x to be a float"),
        (normal(2, 3), normal(2, 3), {"ignore_index": 0}, LayerError, r"ignore_index is for integer labels; these are"),
        (normal(2, 3), np.array([0, 1]), {"label_smoothing": 2}, LayerError, r"0 <= label_smoothing <= 1, got 2"),
    ],
)  # fmt: skip
def test_cross_entropy_refuses_what_does_not_fit(logits, labels, options, error, message):
    with pytest.raises(error, match=message):
        nn.softmax_cross_entropy(logits, labels, **options)


def test_one_hot():
    assert nn.one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert nn.one_hot(np.array([2, 0], np.uint8), 300).sum() == 2
    assert nn.one_hot(np.array([3, -1]), 3).tolist() == [[0, 0, 0]] * 2
    assert nn.one_hot(np.array([0]), 3, dtype=np.float64).dtype == np.float64
    with pytest.raises(DTypeError, match=r"one_hot: expected integer labels, got float64 array of shape \(1,\)"):
        nn.one_hot(np.ones(1), 3)


# Dropout.


def test_dropout_drops_and_scales():
    x, state = np.ones((100, 100), np.float32), rng_state(0)
    y, after = nn.dropout(x, state, p=0.3, training=True)
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.02)
    again, _ = nn.dropout(x, state, p=0.3, training=True)
    np.testing.assert_array_equal(y, again)
    other, _ = nn.dropout(x, after, p=0.3, training=True)
    assert (y != other).any()
    assert after.counter[0] == 10_000 // 8


def test_dropout_differentiates_with_the_same_mask():
    x, state = normal(50), rng_state(1)
    y, _ = nn.dropout(x, state, p=0.5, training=True)
    found = culux.gradient(lambda x: nn.dropout(x, state, p=0.5, training=True)[0].sum(), x)
    np.testing.assert_array_equal(found, np.where(y == 0, 0, 2))


@pytest.mark.parametrize(("p", "training"), [(0, True), (0.5, False), (1, False)])
def test_dropout_that_drops_nothing_gives_back_what_it_got(p, training):
    x, state = normal(5), rng_state(0)
    y, after = nn.dropout(x, state, p=p, training=training)
    assert y is x
    assert after is state


def test_dropout_of_everything_is_zero():
    x, state = np.array([1.0, np.inf, -2.0]), rng_state(0)
    y, after = nn.dropout(x, state, p=1, training=True)
    assert y.tolist() == [0, 0, 0]
    assert after.counter[0] == 1
    found = culux.gradient(lambda x: nn.dropout(x, state, p=1, training=True)[0].sum(), x)
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(LayerError, match=rf"expected 0 <= p <= 1, the probability of dropping, got {p}"):
        nn.dropout(normal(3), rng_state(0), p=p, training=True)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(2, int), r"got int64 array of shape \(2,\); x\.astype\('float32'\)$"),
        (np.ma.ones(2), r"got float64 MaskedArray of shape \(2,\); x = np\.asarray\(x, 'float32'\)$"),
        ([1.0], r"got list \[1\.0\]; x = np\.asarray\(x, 'float32'\)$"),
    ],
)
def test_what_is_no_float_array_gets_its_conversion(x, message):
    with pytest.raises(DTypeError, match=message):
        nn.softmax(x)


def test_a_tensor_gets_its_conversion():
    x = requires("torch").ones(2)
    with pytest.raises(DTypeError, match=r"got torch\.float32 Tensor of shape \(2,\); x = culux\.cpu_device\(\)\(x\)$"):
        nn.softmax(x)
    np.testing.assert_array_equal(nn.softmax(culux.cpu_device()(x)), [0.5, 0.5])
