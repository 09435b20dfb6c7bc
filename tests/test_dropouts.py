"""AlphaDropout and VariationalHiddenDropout: their statistics, masks and states, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import AlphaDropout, Dropout, VariationalHiddenDropout, nn
from culux.errors import DTypeError, LayerError, ShapeError
from tests.arrays import normal

ALPHA = -1.7580993408473766


@pytest.mark.parametrize("p", [0.05, 0.3, 0.7])
def test_alpha_dropout_keeps_mean_and_variance(p):
    layer = AlphaDropout(p)
    ps, st = culux.setup(0, layer)
    y, after = layer(normal(1000, 400, dtype=np.float32), ps, st)
    assert abs(y.mean()) < 0.01
    assert y.var() == pytest.approx(1, abs=0.02)
    a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
    dropped = np.isclose(y, a * ALPHA * (1 - p), atol=1e-6)
    assert dropped.mean() == pytest.approx(p, abs=0.01)
    assert after.rng.counter[0] == 1000 * 400 // 8


def test_alpha_dropout_drops_where_dropout_does():
    x = np.full((5, 7), 100.0)
    st = culux.setup(0, Dropout(0.4))[1]
    dropped = Dropout(0.4)(x, {}, st)[0] == 0
    y, after = AlphaDropout(0.4)(x, {}, st)
    np.testing.assert_array_equal(y < 0, dropped)
    other, _ = AlphaDropout(0.4)(x, {}, after)
    assert np.any(other != y)


def test_alpha_dropout_at_its_ends():
    x = np.array([1.0, np.inf, np.nan])
    st = culux.setup(0, AlphaDropout(1.0))[1]
    np.testing.assert_array_equal(AlphaDropout(1.0)(x, {}, st)[0], [0, 0, 0])
    assert AlphaDropout(0)(x, {}, st)[0] is x
    y, same = AlphaDropout(0.5)(x, {}, culux.test_mode(st))
    assert y is x
    assert same == culux.test_mode(st)


def test_one_mask_for_many_calls():
    layer = VariationalHiddenDropout(0.5)
    ps, st = culux.setup(0, layer)
    x = np.ones((6, 8), np.float32)
    first, st = layer(x, ps, st)
    assert set(np.unique(first)) == {0.0, 2.0}
    assert st.update_mask is False
    again, same = layer(2 * x, ps, st)
    np.testing.assert_array_equal(again, 2 * first)
    assert same is st
    other, after = layer(x, ps, culux.update_state(st, "update_mask", True))
    assert np.any(other != first)
    assert after.rng.counter[0] == 2 * st.rng.counter[0]


def test_the_gradient_takes_the_mask():
    layer = VariationalHiddenDropout(0.5)
    ps, st = culux.setup(0, layer)
    x = normal(6, 8, dtype=np.float32)
    (_, after), slope = culux.value_and_gradient(lambda x: ((r := layer(x, ps, st))[0].sum(), r[1]), x, has_aux=True)
    np.testing.assert_array_equal(slope, 2 * after.mask)
    assert after.mask.dtype == np.bool_


def test_test_mode_draws_no_mask():
    layer = VariationalHiddenDropout(0.5)
    ps, st = culux.setup(0, layer)
    x = normal(6, 8)
    y, after = layer(x, ps, culux.test_mode(st))
    assert y is x
    assert after.mask.shape == (0,)
    assert np.any(layer(x, ps, culux.train_mode(after))[0] == 0)


def test_dropped_infinities_are_zeros():
    layer = VariationalHiddenDropout(1.0)
    ps, st = culux.setup(0, layer)
    np.testing.assert_array_equal(layer(np.array([1.0, np.inf, np.nan]), ps, st)[0], [0, 0, 0])


def test_a_mask_is_saved_with_the_states(tmp_path):
    layer = VariationalHiddenDropout(0.5)
    ps, st = culux.setup(0, layer)
    x = normal(6, 8, dtype=np.float32)
    y, st = layer(x, ps, st)
    culux.serialization.save(tmp_path / "st", st)
    np.testing.assert_array_equal(layer(x, ps, culux.serialization.load(tmp_path / "st"))[0], y)


def test_refusals():
    for kind in (AlphaDropout, VariationalHiddenDropout):
        for p in (-0.1, 1.5, True, "0.5"):
            with pytest.raises(LayerError, match=f"{kind.__name__}: expected p to be a number between 0 and 1, got"):
                kind(p)
        ps, st = culux.setup(0, kind(0.5))
        with pytest.raises(LayerError, match=r"expected st.rng to be a random state Tree.*, got int 3; it comes with"):
            kind(0.5)(np.ones(3), ps, {**st, "rng": 3})
    layer = VariationalHiddenDropout(0.5)
    ps, st = culux.setup(0, layer)
    _, st = layer(np.ones((4, 3)), ps, st)
    with pytest.raises(
        ShapeError, match=r"x of the mask's shape \(4, 3\), got \(2, 3\); .*update_state\(st, \"update_m"
    ):
        layer(np.ones((2, 3)), ps, st)
    with pytest.raises(LayerError, match="expected 0 <= p <= 1, the probability of dropping, got 2"):
        nn.alpha_dropout(np.ones(3), st.rng, p=2, training=True)
    with pytest.raises(DTypeError, match="alpha_dropout: expected x to be a float array, got int64"):
        nn.alpha_dropout(np.ones(3, np.int64), st.rng, p=0.5, training=True)
