"""What the catalogue does not say of losses: extremes, records, objectives, and what the errors say."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import culux
from culux import errors, losses
from culux.losses import CrossEntropyLoss, HuberLoss, MSELoss

LABELS = np.array([0, 2, 1])


def logits(dtype="float64"):
    return np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)


def difference(f, x, step=1e-6):
    """The gradient by central differences."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[i] = step
        found[i] = (f(x + unit) - f(x - unit)) / (2 * step)
    return found


# Numbers.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropies_are_finite_at_large_logits(dtype):
    x = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype)
    value, grad = culux.value_and_gradient(lambda x: losses.cross_entropy(x, np.array([0, 0])), x)
    assert value == 1e4
    assert grad.tolist() == [[0, 0, 0], [-0.5, 0.5, 0]]
    value, grad = culux.value_and_gradient(lambda x: losses.binary_cross_entropy(x, x > 0), x)
    np.testing.assert_allclose(value, 2 * np.log(2) / 6, rtol=1e-6)
    np.testing.assert_allclose(grad, np.where(x == 0, 0.5 / 6, 0), rtol=1e-6)
    value, grad = culux.value_and_gradient(lambda x: losses.binary_cross_entropy(x, x < 0), x)
    np.testing.assert_allclose(value, (4e4 + 2 * np.log(2)) / 6, rtol=1e-6)
    assert np.isfinite(grad).all()


def test_probabilities_of_zero_and_one():
    p = np.array([0.0, 1.0, 0.0, 1.0])
    y = np.array([0.0, 1.0, 1.0, 0.0])
    found = losses.binary_cross_entropy(p, y, from_probabilities=True, reduction="none")
    assert found.tolist() == [0, 0, 100, 100]
    assert np.isfinite(culux.gradient(lambda p: losses.binary_cross_entropy(p, y, from_probabilities=True), p)).all()
    rows = np.array([[0.0, 1.0], [0.5, 0.5]])
    found = losses.cross_entropy(rows, np.array([1, 0]), from_probabilities=True, reduction="none")
    np.testing.assert_allclose(found, [0, np.log(2)])


@pytest.mark.parametrize(
    "loss",
    [losses.mse, losses.mae, losses.huber, losses.hinge, losses.binary_cross_entropy, losses.cross_entropy],
    ids=lambda loss: loss.__name__,
)
def test_the_target_has_a_gradient(loss):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, 4)), rng.uniform(0.1, 0.9, (3, 4))
    found = culux.gradient(lambda y: loss(x, y), y)
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, difference(lambda y: loss(x, y), y), atol=1e-8)


def test_a_loss_between_two_outputs_of_a_function_has_both_terms():
    x = np.array([1.0, 2.0])
    found = culux.gradient(lambda x: losses.mse(x * x, 3 * x), x)
    np.testing.assert_allclose(found, (x * x - 3 * x) * (2 * x - 3))
    held = culux.gradient(lambda x: losses.mse(x * x, culux.stop_gradient(3 * x)), x)
    np.testing.assert_allclose(held, (x * x - 3 * x) * 2 * x)


@pytest.mark.parametrize("y", [1.0, -1.0])
@pytest.mark.parametrize("x", [0.3, -0.3])
def test_hinge_of_both_signs(x, y):
    x, y = np.array([x]), np.array([y])
    found = culux.gradient(lambda x: losses.hinge(x, y), x)
    np.testing.assert_allclose(found, -y)
    assert losses.hinge(x, y.astype(int)) == losses.hinge(x, y)


def test_huber_is_the_square_inside_and_a_line_outside():
    r = np.array([0.5, -0.5, 2.0, -4.0])
    assert losses.huber(r, np.zeros(4), reduction="none").tolist() == [0.125, 0.125, 1.5, 3.5]
    assert losses.huber(r, np.zeros(4), delta=4.0, reduction="none").tolist() == [0.125, 0.125, 2.0, 8.0]


def test_an_integer_or_boolean_target_keeps_the_dtype():
    x = logits("float32")
    assert losses.binary_cross_entropy(x, x > 0).dtype == np.float32
    assert losses.binary_cross_entropy(x, (x > 0).astype(int)).dtype == np.float32
    assert losses.cross_entropy(x, LABELS, ignore_index=2).dtype == np.float32
    assert losses.cross_entropy(x, LABELS, weight=[1, 2, 3, 4], label_smoothing=0.1).dtype == np.float32
    assert losses.cross_entropy(x, LABELS.astype(np.uint8)) == losses.cross_entropy(x, LABELS)


def test_ignored_labels_may_be_out_of_range_and_have_no_gradient():
    y = np.array([0, -100, 1])
    for options in ({}, {"weight": [1.0, 2.0, 3.0, 4.0]}):

        def f(x, options=options):
            return losses.cross_entropy(x, y, ignore_index=-100, **options)

        grad = culux.gradient(f, logits())
        assert grad[1].tolist() == [0] * 4
        assert f(logits()) == losses.cross_entropy(logits()[[0, 2]], y[[0, 2]], **options)


# Records.


def test_a_record_is_callable_on_arrays_and_as_an_objective():
    layer = culux.Dense(2, 4)
    ps, st = culux.setup(0, layer)
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    loss = CrossEntropyLoss(label_smoothing=0.1)
    value, new, stats = loss(layer, ps, st, (x, LABELS))
    expected = losses.cross_entropy(layer(x, ps, st)[0], LABELS, label_smoothing=0.1)
    assert (value, new, stats) == (expected, st, {})
    assert loss(layer(x, ps, st)[0], LABELS) == expected


def test_an_objective_carries_the_states():
    class Counter(culux.Layer):
        def initial_states(self, rng):
            return {"calls": 0}

        def __call__(self, x, ps, st):
            return x, st.replace(calls=st.calls + 1)

    ps, st = culux.setup(0, Counter())
    _, st, _ = MSELoss()(Counter(), ps, st, (np.ones(2), np.zeros(2)))
    assert st.calls == 1


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(weight=np.array([0.5, 1.0, 1.5, 2.0]), ignore_index=1),
        losses.BinaryCrossEntropyLoss(weight=np.ones((2, 2)), pos_weight=[1.0, 2.0]),
        losses.NegativeLogLikelihoodLoss(reduction="sum"),
        HuberLoss(0.5),
        MSELoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_are_records(loss):
    assert eval(repr(loss), vars(losses)) == loss
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(copy.deepcopy(loss)) == hash(loss)
    assert loss != type(loss)(reduction="none")
    with pytest.raises(AttributeError):
        loss.reduction = "none"


def test_the_options_of_a_record_are_used():
    x, y = logits(), LABELS
    weight = [0.5, 1.0, 1.5, 2.0]
    assert CrossEntropyLoss(weight=weight, reduction="sum")(x, y) == losses.cross_entropy(
        x, y, weight=np.array(weight), reduction="sum"
    )
    assert HuberLoss(delta=0.1)(x, -x) == losses.huber(x, -x, delta=0.1) != losses.huber(x, -x)


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: losses.mse(x[:, :1], x[:, 0]),
            errors.ShapeError,
            r"mse: expected a prediction and a target of one shape, got \(3, 1\) and \(3,\), which would broadcast",
        ),
        (lambda x: losses.mae(x, x[0]), errors.ShapeError, r"mae: .* got \(3, 4\) and \(4,\)"),
        (lambda x: losses.huber(x, x[0, 0]), errors.ShapeError, r"huber: .* got \(3, 4\) and \(\)"),
        (lambda x: losses.mse(x, None), errors.DTypeError, "^mse: expected an array for the target, got NoneType None"),
        (lambda x: losses.mae([1.0], x), errors.DTypeError, "^mae: expected an array for the prediction, got list"),
        (lambda x: losses.huber(x, 1.0), errors.DTypeError, "^huber: expected an array for the target, got float 1.0"),
        (lambda x: losses.hinge(x, [1]), errors.DTypeError, "^hinge: expected an array for the target, got list"),
        (lambda x: losses.hinge(x, x[:2]), errors.ShapeError, r"hinge: .* got \(3, 4\) and \(2, 4\)"),
        (lambda x: losses.binary_cross_entropy(x, x[:, 0]), errors.ShapeError, "binary_cross_entropy: .* of one shape"),
        (
            lambda x: losses.cross_entropy(LABELS, x),
            errors.DTypeError,
            r"expected a float prediction, got int64 array of shape \(3,\); the prediction comes first: ",
        ),
        (
            lambda x: losses.binary_cross_entropy(x > 0, x),
            errors.DTypeError,
            "got bool array .*; the prediction comes first",
        ),
        (lambda x: losses.cross_entropy(x, [0, 1, 2]), errors.DTypeError, "expected an array for the labels, got list"),
        (
            lambda x: losses.cross_entropy(x, np.array([0, 4, 1])),
            errors.ShapeError,
            r"expected labels from 0 to 3 \(4 classes\), got 4 at labels\[1\]",
        ),
        (
            lambda x: losses.cross_entropy(x, np.array([0, 1, -1]), weight=[1.0] * 4),
            errors.ShapeError,
            r"expected labels from 0 to 3 \(4 classes\), got -1 at labels\[2\]",
        ),
        (
            lambda x: losses.cross_entropy(x, LABELS * 1.0),
            errors.DTypeError,
            r"expected integer labels of shape \(3,\), got float64 .*; labels.astype\('int64'\), or probabilities",
        ),
        (
            lambda x: losses.cross_entropy(x, np.eye(3, 4, dtype=int)),
            errors.DTypeError,
            r"labels of the prediction's shape \(3, 4\) are probabilities and floats, got int64",
        ),
        (
            lambda x: losses.cross_entropy(x, x[:, :3]),
            errors.ShapeError,
            r"labels of shape \(3,\), or probabilities of shape \(3, 4\), got float64 array of shape \(3, 3\)",
        ),
        (
            lambda x: losses.cross_entropy(x[:, 0], LABELS),
            errors.ShapeError,
            r"expected a prediction of shape \(N, C\) or \(N, C, \*spatial\), got \(3,\); the classes lie along axis 1",
        ),
        (
            lambda x: losses.cross_entropy(x, LABELS > 0),
            errors.DTypeError,
            r"^cross_entropy: expected integer labels, got bool array of shape \(3,\)",
        ),
        (
            lambda x: losses.cross_entropy(np.ma.masked_array(x), LABELS),
            errors.DTypeError,
            r"^cross_entropy: expected x to be a float array, got float64 MaskedArray",
        ),
        (
            lambda x: losses.cross_entropy(np.ma.masked_array(x), LABELS, weight=[1.0] * 4),
            errors.DTypeError,
            r"^cross_entropy: expected x to be a float array, got float64 MaskedArray",
        ),
        (
            lambda x: losses.cross_entropy(x, np.ma.masked_array(x)),
            errors.DTypeError,
            r"^cross_entropy with labels of the logits' shape: expected x to be a float array",
        ),
        (
            lambda x: losses.negative_log_likelihood(x, LABELS, weight=[1.0, 2.0]),
            errors.ShapeError,
            r"^negative_log_likelihood: expected weight of shape \(4,\)",
        ),
        (
            lambda x: losses.cross_entropy(x, LABELS, weight=[1.0, 2.0]),
            errors.ShapeError,
            r"^cross_entropy: expected weight of shape \(4,\), one per class, got \(2,\)",
        ),
        (
            lambda x: losses.negative_log_likelihood(x, abs(x), ignore_index=1),
            errors.LayerError,
            "ignore_index is for integer labels; these are probabilities",
        ),
        (
            lambda x: losses.cross_entropy(x, LABELS, label_smoothing=2.0),
            errors.LayerError,
            "expected 0 <= label_smoothing <= 1, got 2.0",
        ),
        (
            lambda x: losses.binary_cross_entropy(x, x, label_smoothing=-1.0),
            errors.LayerError,
            "binary_cross_entropy: expected 0 <= label_smoothing <= 1, got -1.0",
        ),
        (
            lambda x: losses.mse(x, x, reduction="maen"),
            errors.LayerError,
            r"expected reduction to be 'mean', 'sum' or 'none', got 'maen' \(did you mean 'mean'\?\)",
        ),
        (
            lambda x: losses.cross_entropy(x, LABELS, weight=[1.0] * 4, reduction="average"),
            errors.LayerError,
            "expected reduction to be .* got 'average'",
        ),
        (lambda x: losses.huber(x, x, delta=0.0), errors.LayerError, "huber: expected delta > 0, got 0.0"),
        (lambda x: HuberLoss(deta=1.0), errors.LayerError, r"HuberLoss takes no deta= \(did you mean 'delta'\?\)"),
        (
            lambda x: MSELoss()(x),
            errors.LayerError,
            r"MSELoss: expected \(y_hat, y\) or \(layer, .*\), got 1",
        ),
        (
            lambda x: MSELoss()(culux.Dense(4, 4), {}, {}, x),
            errors.LayerError,
            r"MSELoss: expected a batch \(x, y\), got float64 array of shape \(3, 4\)",
        ),
    ],
)
def test_losses_that_are_called_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call(logits())


@pytest.mark.parametrize("options", [{}, {"weight": [1.0] * 4}, {"ignore_index": 0}, {"from_probabilities": True}])
def test_cross_entropy_has_no_mean_of_an_empty_batch(options):
    x, labels = logits()[:0], LABELS[:0]
    with pytest.raises(
        errors.ShapeError, match=r"^cross_entropy: expected at least one example, got a prediction of shape \(0, 4\)$"
    ):
        losses.cross_entropy(x, labels, **options)
    assert losses.cross_entropy(x, labels, reduction="sum", **options) == 0
    assert losses.cross_entropy(x, labels, reduction="none", **options).shape == (0,)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "hinge", "binary_cross_entropy", "negative_log_likelihood"])
def test_no_loss_has_a_mean_of_an_empty_batch(name):
    loss, x = getattr(losses, name), logits()[:0]
    with pytest.raises(errors.ShapeError, match=rf"^{name}: expected at least one example, got .* \(0, 4\)$"):
        loss(x, x)
    assert loss(x, x, reduction="sum") == 0
    assert loss(x, x, reduction="none").size == 0
