"""Rules made of rules: groups and chains, schedules, rules of the user."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from culux import Tree, errors, optim, tree
from culux.optim import Adam, Descent, Momentum, chain, clip_norm, groups, schedules
from tests.optim_support import assert_equal, gradients, parameters, steps

# Rules made of rules, schedules.


def test_groups_take_the_first_pattern_that_fits():
    rule = groups({"layer_1.*": Descent(1.0), "*.bias": Descent(2.0)}, default=Descent(4.0))
    ps = parameters()
    ones = tree.map(np.ones_like, ps)
    _, new = steps(rule, ps, [ones])
    moved = tree.map(lambda a, b: float(np.unique(np.round(a - b, 12))[0]), ps, new)
    assert moved == Tree(layer_1=Tree(weight=1.0, bias=1.0), layer_2=Tree(weight=4.0, bias=2.0))


def test_groups_in_groups_and_chains_that_cross():
    inner = groups({"*.bias": Descent(1.0)}, default=Descent(10.0))
    rule = chain(groups({"layer_1.*": optim.clip_value(0.5)}, default=optim.clip_value(0.25)), inner)
    ps = parameters()
    _, new = steps(rule, ps, [tree.map(np.ones_like, ps)])
    moved = tree.map(lambda a, b: float(np.unique(np.round(a - b, 12))[0]), ps, new)
    assert moved == Tree(layer_1=Tree(weight=5.0, bias=0.5), layer_2=Tree(weight=2.5, bias=0.25))


def test_clip_norm_in_a_group_has_the_norm_of_the_group():
    ps = Tree(a=np.zeros(2), b=np.zeros(2), c=np.zeros(2))
    rule = groups({"c": Descent(1.0)}, default=chain(clip_norm(1.0), Descent(1.0)))
    _, new = steps(rule, ps, [Tree(a=np.array([3.0, 0]), b=np.array([0, 4.0]), c=np.array([100.0, 0]))])
    np.testing.assert_allclose(-new.a, [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(-new.b, [0, 0.8], rtol=1e-6)
    assert new.c.tolist() == [-100, 0]


def test_clip_norm_counts_all_dtypes_and_no_frozen_leaf():
    ps = Tree(a=np.zeros(2, np.float32), b=np.zeros(2), c=np.zeros(2))
    state = optim.freeze(optim.setup(chain(clip_norm(1.0), Descent(1.0)), ps), "c")
    g = Tree(a=np.array([3, 0], np.float32), b=np.array([0, 4.0]), c=np.array([100.0, 0]))
    _, new = optim.update(state, ps, g)
    np.testing.assert_allclose(-new.a, [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(-new.b, [0, 0.8], rtol=1e-6)
    assert new.a.dtype == np.float32
    assert new.c.tolist() == [0, 0]


def test_schedules_count_the_updates_of_the_state():
    _, new = steps(Descent(lambda step: 10.0**step), Tree(w=np.zeros(1)), [Tree(w=np.ones(1))] * 3)
    assert new.w.tolist() == [-111]
    scheduled = Adam(0.1, betas=(schedules.constant(0.5), 0.999), epsilon=schedules.constant(1e-3))
    ps, grads = parameters(), gradients(4)
    assert_equal(steps(scheduled, ps, grads)[1], steps(Adam(0.1, (0.5, 0.999), 1e-3), ps, grads)[1])


def test_a_numpy_number_as_a_hyper_parameter_keeps_the_dtype():
    _, new = steps(Momentum(np.float64(0.5), np.float64(0.9)), Tree(w=np.ones(2, np.float32)), [Tree(w=np.ones(2))])
    assert new.w.dtype == np.float32
    assert type(Momentum(np.float64(0.5)).learning_rate) is float


def test_a_rule_of_the_user():
    class Signs(optim.Rule):
        """Steps by the sign of the mean gradient."""

        learning_rate: float = 0.1
        moments = 1

        def apply(self, count, d, x, *moments):
            (total,) = moments
            total += d
            return self.learning_rate * np.sign(total / count)

    _, new = steps(Signs(0.5), Tree(w=np.zeros(2)), [Tree(w=np.array([1.0, -3.0])), Tree(w=np.array([-2.0, 1.0]))])
    assert new.w.tolist() == [0.0, 1.0]
    assert repr(Signs(0.5)) == "Signs(0.5)"

    class Nothing(optim.Rule):
        pass

    with pytest.raises(errors.LayerError, match=r"Nothing does not define apply\(self, count, d, x, \*moments\)"):
        steps(Nothing(), Tree(w=np.zeros(2)), [Tree(w=np.ones(2))])


def test_rules_compare_hash_pickle_and_print():
    rule = groups({"*.bias": Descent(0.1)}, default=chain(clip_norm(1.0), Adam(schedules.cosine(1e-3, 10))))
    assert repr(rule) == "groups({'*.bias': Descent(0.1)}, default=chain(clip_norm(1.0), Adam(cosine(0.001, 10))))"
    assert eval(repr(rule), vars(optim) | vars(schedules)) == rule
    assert hash(copy.deepcopy(rule)) == hash(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert rule != rule.adjusted({"learning_rate": 0.2})
    with pytest.raises(AttributeError, match="learning_rate"):
        Adam().learning_rate = 3.0
