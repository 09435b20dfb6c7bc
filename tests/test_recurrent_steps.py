"""A sequence as a list or tuple of its steps."""

from __future__ import annotations

import re

import numpy as np
import pytest

import culux
from culux import BidirectionalRNN, GRUCell, Recurrence
from culux.errors import ShapeError
from tests.catalogue.recurrent import Leaky

X = np.random.default_rng(0).standard_normal((4, 6, 2))


@pytest.mark.parametrize("form", [list, tuple])
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda axis: Recurrence(GRUCell(2, 3), time_axis=axis),
        lambda axis: Recurrence(GRUCell(2, 3), return_sequence=True, time_axis=axis),
        lambda axis: Recurrence(Leaky(), return_sequence=True, time_axis=axis),
        lambda axis: BidirectionalRNN(GRUCell(2, 3), time_axis=axis),
    ],
)
def test_steps_one_by_one_are_a_sequence(form, time_axis, make):
    layer = make(time_axis)
    ps, st = culux.setup(0, layer, dtype=np.float64)
    steps = form(X[:, t] for t in range(6))
    y, pullback = culux.vjp(lambda steps: layer(steps, ps, st)[0], steps)
    whole, of_whole = culux.vjp(lambda x: layer(x, ps, st)[0], np.stack(steps, time_axis))
    np.testing.assert_array_equal(y, whole)
    (grads,), (expected,) = pullback(np.ones_like(y)), of_whole(np.ones_like(y))
    assert type(grads) is form
    np.testing.assert_allclose(np.stack(grads, time_axis), expected, rtol=1e-12)


@pytest.mark.parametrize("layer", [Recurrence(GRUCell(2, 3)), BidirectionalRNN(GRUCell(2, 3))], ids=repr)
@pytest.mark.parametrize(
    ("steps", "given"),
    [([X[:, 0], X[:2, 1]], "list of (4, 2), (2, 2)"), ([X], "list of (4, 6, 2)"), ((), "tuple of none")],
    ids=["two shapes", "a sequence", "none"],
)
def test_wrong_steps(layer, steps, given):
    expected = f"expected the steps of x to be of one shape (batch, features), got {given}"
    with pytest.raises(ShapeError, match=re.escape(expected)):
        layer(steps, *culux.setup(0, layer))
