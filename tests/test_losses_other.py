"""Losses besides the cross entropies: known values, extremes, objectives of several arrays, and errors."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

import culux
from culux import errors, losses
from culux import numpy as cnp

ROWS = np.arange(-7.0, 8.0).reshape(3, 5, order="F").T  # five examples of three classes
LABELS = np.array([[0, 1, 0, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1.0]]).T


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def absolute_fourth(y_hat, y):
    return cnp.abs(y_hat - y) ** 4.0


# Numbers, most of them from the documentation of Lux.jl.


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (losses.msle(np.array([1.1, 2.2, 3.3]), np.array([1, 2, 3])), 0.009084041),
        (losses.kl_divergence(np.full((2, 2), 0.5), np.eye(2), from_probabilities=True), np.log(2)),
        (losses.dice(np.array([1.1, 2.1, 3.1]), np.array([1, 2, 3])), 0.000992391663909964),
        (losses.squared_hinge(np.array([0.1, 0.3, 1, 1.3]), np.array([1, -1, 1, 1])), 0.625),
        (losses.poisson(np.array([1.0, 3.0, 3.0]), np.array([1, 3, 2]), log_input=False), 0.502312852219817),
        (losses.siamese_contrastive(np.array([0.5, 1.5, 2.5]), np.array([1.0, 2.0, 3.0])), -14.5 / 3),
        (losses.siamese_contrastive(np.array([0.5, 1.5, 2.5]), np.array([1.0, 2.0, 3.0]), margin=2.0), -4.0),
        (
            losses.binary_focal(
                np.array([[0.268941, 0.5, 0.268941], [0.731059, 0.5, 0.731059]]),
                np.array([[0, 1, 0], [1, 0, 1]]), from_probabilities=True,
            ),
            0.0728675615927385,
        ),
        (losses.focal(softmax(ROWS), LABELS, from_probabilities=True), 1.1277556),
        (losses.focal(ROWS, LABELS), 1.1277556),
        (losses.cosine_distance(np.array([[1.0, 0]]), np.array([[-2.0, 0]])), 2.0),
    ],
)  # fmt: skip
def test_known_values(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_focal_losses_of_certain_predictions(gamma, dtype):
    x = np.array([[200.0, -200.0], [-200.0, 200.0]], dtype)
    value, slope = culux.value_and_gradient(lambda x: losses.focal(x, np.array([0, 0]), gamma=gamma), x)
    assert value == 200
    np.testing.assert_allclose(slope, [[0, 0], [-0.5, 0.5]], atol=1e-6)
    value, slope = culux.value_and_gradient(
        lambda x: losses.binary_focal(x, np.array([[True, False], [True, False]]), gamma=gamma), x
    )
    assert value == 100
    np.testing.assert_allclose(slope, [[0, 0], [-0.25, 0.25]], atol=1e-6)


def test_kl_divergence_of_labels_without_doubt_is_the_cross_entropy():
    x, y = np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 2, 1, 1, 0])
    hot = np.eye(3)[y]
    np.testing.assert_allclose(losses.kl_divergence(x, hot), losses.cross_entropy(x, y), rtol=1e-12)
    assert abs(losses.kl_divergence(np.log(softmax(x)), softmax(x))) < 1e-12


@pytest.mark.parametrize("f", [losses.cosine_distance, lambda a, b: losses.cosine_embedding(a, b, np.ones(2))])
def test_a_vector_of_zeros_has_similarity_zero_and_finite_gradients(f):
    value, slope = culux.value_and_gradient(f, np.zeros((2, 3)), np.ones((2, 3)))
    assert value == 1
    assert all(np.isfinite(s).all() for s in slope)


def test_equal_vectors_have_a_finite_triplet_gradient():
    a = np.ones((2, 3))
    slopes = culux.gradient(lambda a, p, n: losses.triplet_margin(a, p, n, epsilon=0.0), a, a, a)
    assert all(np.isfinite(s).all() for s in slopes)


def test_integer_targets_keep_the_dtype():
    x, y = np.full((3, 2), 0.5, np.float32), np.array([[0, 1], [1, 1], [0, 0]])
    for name in ("squared_hinge", "msle", "poisson", "siamese_contrastive", "dice", "binary_focal"):
        assert getattr(losses, name)(x, y).dtype == np.float32, name
        assert getattr(losses, name)(x, y > 0).dtype == np.float32, name


# Sequences.


def likelihood(p, labels, blank):
    """The sum over all paths that read as the labels."""
    total = 0.0
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        read = [c for c, _ in itertools.groupby(path) if c != blank]
        total += np.prod(p[range(len(p)), path]) if read == list(labels) else 0
    return total


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2]])
@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_sums_over_all_alignments(labels, blank):
    x = np.random.default_rng(0).standard_normal((1, 5, 4))
    found = losses.ctc(x, np.array([labels + [-1] * (3 - len(labels))]), blank=blank, reduction="sum")
    np.testing.assert_allclose(found, -np.log(likelihood(softmax(x[0]), labels, blank)), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ctc_of_too_few_steps(dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(dtype)
    y = np.array([[1, 1, 2], [1, 2, -1]])
    found = losses.ctc(x, y, reduction="none")
    assert found[0] == np.inf
    assert np.isfinite(found[1])
    value, slope = culux.value_and_gradient(lambda x: losses.ctc(x, y, zero_infinity=True, reduction="sum"), x)
    assert value == found[1]
    assert not slope[0].any()
    assert slope[1].any()


def test_ctc_ignores_what_lies_after_the_lengths():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 4)), np.array([[1, 2, 3], [3, 1, 1]])
    found = losses.ctc(x, y, [6, 4], [3, 1], reduction="none")
    np.testing.assert_allclose(found[1], losses.ctc(x[1:, :4], y[1:, :1], reduction="sum"))
    slope = culux.gradient(lambda x: losses.ctc(x, y, [6, 4], [3, 1]), x)
    assert not slope[1, 4:].any()
    assert slope[1, 3].any()


def test_ctc_of_an_alphabet_without_labels_and_of_one_step():
    x = np.random.default_rng(0).standard_normal((2, 1, 3))
    np.testing.assert_allclose(
        losses.ctc(x, np.full((2, 0), 0), reduction="none"), -np.log(softmax(x[:, 0])[:, 0]), rtol=1e-10
    )
    np.testing.assert_allclose(losses.ctc(x, np.array([[2], [1]])), losses.cross_entropy(x[:, 0], np.array([2, 1])))


def test_ctc_of_long_sequences_in_float32():
    x = np.random.default_rng(0).standard_normal((2, 200, 5)).astype(np.float32)
    y = np.tile([1, 2, 3, 4], (2, 10))
    value, slope = culux.value_and_gradient(lambda x: losses.ctc(x, y), x)
    wide, expected = culux.value_and_gradient(lambda x: losses.ctc(x, y), x.astype(np.float64))
    np.testing.assert_allclose(value, wide, rtol=1e-5)
    np.testing.assert_allclose(slope, expected, atol=1e-5)


# Records and objectives.


@pytest.mark.parametrize(
    "loss",
    [
        losses.MSLELoss(epsilon=1.0), losses.SquaredHingeLoss(), losses.PoissonLoss(log_input=False),
        losses.SiameseContrastiveLoss(2.0), losses.DiceCoeffLoss(smooth=0.5), losses.KLDivergenceLoss(0.1),
        losses.FocalLoss(gamma=1.0, weight=np.array([1.0, 2.0])), losses.BinaryFocalLoss(gamma=3.0),
        losses.CosineDistanceLoss(), losses.CosineEmbeddingLoss(0.5), losses.TripletMarginLoss(swap=True),
        losses.CTCLoss(blank=2),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_losses_are_records(loss):
    assert eval(repr(loss), vars(losses)) == loss
    assert hash(copy.deepcopy(loss)) == hash(pickle.loads(pickle.dumps(loss))) == hash(loss)
    assert loss != type(loss)(reduction="none")


def test_names_of_lux():
    assert losses.L1Loss is losses.MAELoss
    assert losses.L2Loss is losses.MSELoss


def test_a_loss_of_ones_own_is_an_objective():
    layer, x = culux.Dense(2, 3), np.ones((4, 2), np.float32)
    ps, st = culux.setup(0, layer)
    loss = losses.GenericLossFunction(absolute_fourth, reduction="sum")
    y = np.zeros((4, 3), np.float32)
    value, _, stats = loss(layer, ps, st, (x, y))
    np.testing.assert_allclose(value, (layer(x, ps, st)[0] ** 4).sum(), rtol=1e-6)
    assert stats == {}
    assert pickle.loads(pickle.dumps(loss)) == loss


class Each(culux.WrapperLayer):
    """One layer for every element of a tuple."""

    layer: culux.Layer

    def __call__(self, x, ps, st):
        return tuple(self.layer(part, ps, st)[0] for part in x), st


def test_objectives_of_pairs_and_triplets():
    rng = np.random.default_rng(0)
    a, p, n = (rng.standard_normal((4, 2)).astype(np.float32) for _ in range(3))
    layer = Each(culux.Dense(2, 3))
    ps, st = culux.setup(0, layer)
    outputs, _ = layer((a, p, n), ps, st)
    value, new, _ = losses.TripletMarginLoss()(layer, ps, st, ((a, p, n), ()))
    assert value == losses.triplet_margin(*outputs) == losses.TripletMarginLoss()(*outputs)
    assert new == st
    y = np.array([1, -1, -1, 1])
    value, _, _ = losses.CosineEmbeddingLoss()(layer, ps, st, ((a, p), y))
    assert value == losses.cosine_embedding(*outputs[:2], y)
    with pytest.raises(
        errors.LayerError,
        match=r"TripletMarginLoss: expected \(anchor, positive, negative\) from what the layer returns followed by y, "
        "got 4 arrays",
    ):
        losses.TripletMarginLoss()(layer, ps, st, ((a, p, n), y))
    with pytest.raises(errors.LayerError, match=r"expected \(a, b, y\) or \(layer, ps, st, \(x, y\)\), got 2 argum"):
        losses.CosineEmbeddingLoss()(a, p)


def test_an_objective_of_sequences_with_lengths():
    layer, x = culux.Dense(2, 4), np.random.default_rng(0).standard_normal((2, 5, 2)).astype(np.float32)
    ps, st = culux.setup(0, layer)
    y, lengths = np.array([[1, 2], [3, -1]]), np.array([5, 4])
    value, _, _ = losses.CTCLoss()(layer, ps, st, (x, (y, lengths)))
    assert value == losses.ctc(layer(x, ps, st)[0], y, lengths)


# Errors.


X = np.random.default_rng(0).standard_normal((3, 4))
SEQUENCES, TARGETS = np.zeros((2, 5, 4)), np.array([[1, 2], [3, -1]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.msle(X, X, epsilon=0.0), errors.LayerError, "^msle: expected epsilon > 0, got 0.0"),
        (lambda: losses.msle(X, X[0]), errors.ShapeError, r"^msle: .* of one shape, got \(3, 4\) and \(4,\)"),
        (lambda: losses.poisson(X, 1.0), errors.DTypeError, "^poisson: expected an array for the target, got float"),
        (
            lambda: losses.squared_hinge(X, X, reduction="avg"),
            errors.LayerError,
            "to be 'mean', .* got 'avg'",
        ),
        (lambda: losses.siamese_contrastive(X, X, margin=-1), errors.LayerError, "expected margin > 0, got -1"),
        (lambda: losses.dice(X, X, smooth=0), errors.LayerError, "^dice: expected smooth > 0, got 0"),
        (lambda: losses.elementwise(X, X, f=3), errors.LayerError, r"f to be a function of \(y_hat, y\), got int 3"),
        (lambda: losses.kl_divergence(X, np.zeros(3, int)), errors.ShapeError, r"got \(3, 4\) and \(3,\)"),
        (
            lambda: losses.kl_divergence(X[0], X[0]),
            errors.ShapeError,
            r"of shape \(N, C\) or .*, got \(4,\)",
        ),
        (lambda: losses.kl_divergence(X, X, label_smoothing=2), errors.LayerError, "0 <= label_smoothing <= 1, got 2"),
        (lambda: losses.focal(X, np.zeros(3, int), gamma=-1), errors.LayerError, "^focal: expected gamma >= 0, got -1"),
        (lambda: losses.focal(X, np.full(3, 4)), errors.ShapeError, r"labels from 0 to 3 \(4 classes\), got 4"),
        (lambda: losses.focal(X, np.zeros(3, int), weight=[1.0]), errors.ShapeError, r"weight of shape \(4,\)"),
        (lambda: losses.binary_focal(X > 0, X), errors.DTypeError, "got bool array .*; the prediction comes first"),
        (lambda: losses.binary_focal(X, X, gamma=np.nan), errors.LayerError, "expected gamma >= 0, got nan"),
        (lambda: losses.cosine_distance(X, X, axis=2), errors.ShapeError, r"vectors along axis 2, got .* \(3, 4\)"),
        (lambda: losses.cosine_similarity(X, X[:2]), errors.ShapeError, r"got \(3, 4\) and \(2, 4\)"),
        (
            lambda: losses.cosine_embedding(X, X, X),
            errors.ShapeError,
            r"y of shape \(3,\), one number per pair",
        ),
        (lambda: losses.cosine_embedding(X, X, [1]), errors.DTypeError, "expected an array for the target, got list"),
        (lambda: losses.cosine_embedding(X, X, X[:, 0], margin=2), errors.LayerError, "-1 <= margin <= 1, got 2"),
        (lambda: losses.triplet_margin(X, X, X[:2]), errors.ShapeError, r"got \(3, 4\) and \(2, 4\)"),
        (lambda: losses.triplet_margin(X, X, X, p=0.5), errors.LayerError, "margin > 0 and p >= 1, got .*p=0.5"),
        (lambda: losses.triplet_margin(X[:0], X[:0], X[:0]), errors.ShapeError, "expected at least one example"),
        (lambda: losses.ctc(X, TARGETS), errors.ShapeError, r"logits of shape \(N, time, C\).*, got \(3, 4\)"),
        (lambda: losses.ctc(SEQUENCES > 0, TARGETS), errors.DTypeError, "ctc: expected logits to be a float array"),
        (lambda: losses.ctc(SEQUENCES, TARGETS[0]), errors.ShapeError, r"labels of shape \(2, S\), got \(2,\)"),
        (lambda: losses.ctc(SEQUENCES, TARGETS * 1.0), errors.DTypeError, "ctc: expected integer labels, got float64"),
        (lambda: losses.ctc(SEQUENCES, [[1], [2]]), errors.DTypeError, "expected an array for the labels, got list"),
        (lambda: losses.ctc(SEQUENCES, TARGETS, blank=4), errors.LayerError, r"blank from 0 to 3 \(4 classes\), got 4"),
        (lambda: losses.ctc(SEQUENCES, TARGETS, blank=2), errors.ShapeError, r"blank 2, got 2 at labels\[0, 1\]"),
        (lambda: losses.ctc(SEQUENCES, TARGETS + 1), errors.ShapeError, r"from 0 to 3 .*, got 4 at labels\[1, 0\]"),
        (lambda: losses.ctc(SEQUENCES, TARGETS, [6, 5]), errors.ShapeError, "expected lengths from 1 to 5, got 5 to 6"),
        (lambda: losses.ctc(SEQUENCES, TARGETS, [5, 0]), errors.ShapeError, "expected lengths from 1 to 5, got 0 to 5"),
        (lambda: losses.ctc(SEQUENCES, TARGETS, [5]), errors.ShapeError, r"lengths of shape \(2,\), got int64 array"),
        (
            lambda: losses.ctc(SEQUENCES, TARGETS, None, [1.0, 2.0]),
            errors.DTypeError,
            "ctc with label_lengths: expected integer labels",
        ),
        (
            lambda: losses.ctc(SEQUENCES, TARGETS, None, [2, 2]),
            errors.ShapeError,
            r"other than the blank 0, got -1 at labels\[1, 1\]",
        ),
        (lambda: losses.ctc(SEQUENCES[:, :0], TARGETS), errors.ShapeError, "with at least one step"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
