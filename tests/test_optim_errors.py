"""What the optimiser's errors say."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim
from culux.optim import Adam, AdamW, Momentum, RMSProp, chain, clip_norm, groups
from tests.optim_support import gradients, parameters

# Errors.


def test_grads_and_ps_swapped():
    ps, grads = parameters(), gradients(3)
    state = optim.setup(Adam(), ps)
    swapped = "grads are the parameters and ps are not.*opt, ps = culux.optim.update\\(opt, ps, grads\\)"
    with pytest.raises(errors.LayerError, match=swapped):
        optim.update(state, grads[0], ps)
    state, ps = optim.update(state, ps, grads[0])
    with pytest.raises(errors.LayerError, match=swapped):
        optim.update(state, grads[1], ps)
    optim.update(state, ps, ps)  # the gradient of |ps|^2 / 2


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state)), culux.cpu_device()])
def test_a_state_that_lost_its_parameters_sees_a_swap_at_its_second_update(copied, swapped):
    ps, grads = parameters(), gradients(2)
    state = copied(optim.setup(Adam(), ps))
    assert state._known is None
    state, ps = optim.update(state, grads[0], ps) if swapped else optim.update(state, ps, grads[0])
    with pytest.raises(errors.LayerError, match="grads are the parameters and ps are not"):
        optim.update(state, grads[1], ps)


def test_grads_and_ps_swapped_after_a_move_where_a_leaf_has_no_gradient():
    ps = Tree(w=np.ones(2), n=np.arange(2))
    grads = culux.gradient(lambda ps: ps.w.sum(), ps)
    state = copy.deepcopy(optim.setup(Adam(), ps))
    with pytest.raises(
        errors.LayerError, match=r"grads have int64 array of shape \(2,\) where ps have None.*wrong order"
    ):
        optim.update(state, grads, ps)


def test_arguments_in_another_order():
    ps, (g,) = parameters(), gradients(1)
    with pytest.raises(errors.LayerError, match=r"expected an OptimizerState first, got Tree.*opt, ps = culux.optim"):
        optim.update(ps, optim.setup(Adam(), ps), g)
    with pytest.raises(errors.LayerError, match=r"expected a rule such as Adam\(1e-3\), got Tree.*optim.setup\("):
        optim.setup(ps, Adam())
    with pytest.raises(errors.LayerError, match=r"expected a rule such as Adam\(1e-3\), got .*; call it"):
        optim.setup(Adam, ps)


def test_gradients_of_another_structure_name_the_paths():
    ps, (g,) = parameters(), gradients(1)
    state = optim.setup(Adam(), ps)
    other = {"layer_1": {"weight": g.layer_1.weight, "scale": g.layer_1.bias}, "layer_2": g.layer_2}
    message = r"grads: .*missing: layer_1.bias; not expected: layer_1.scale"
    with pytest.raises(errors.ShapeError, match=message):
        optim.update(state, ps, other)
    with pytest.raises(errors.ShapeError, match=r"ps: .*missing: layer_2.weight, layer_2.bias"):
        optim.update(state, Tree(layer_1=ps.layer_1), g)
    with pytest.raises(errors.ShapeError, match=r"grads: .*not expected: an array at the top"):
        optim.update(state, ps, np.ones(3))
    with pytest.raises(
        errors.ShapeError, match=r"grads at layer_2.bias: expected an array of shape \(2,\), got float64"
    ):
        optim.update(state, ps, g.replace({"layer_2.bias": np.ones(3)}))
    with pytest.raises(errors.ShapeError, match=r"ps: expected the tree that optim.setup got; missing: layer_2.bias"):
        optim.update(state, ps.replace({"layer_2.bias": None}), g)


def test_traced_arrays_are_refused():
    ps, (g,) = parameters(), gradients(1)
    state = optim.setup(Adam(), ps)
    with pytest.raises(errors.DifferentiationError, match=r"layer_1.weight: expected plain arrays, got traced ones"):
        culux.gradient(lambda ps: optim.setup(Adam(), ps).step, ps)
    with pytest.raises(errors.DifferentiationError, match=r"grads: expected plain arrays, got traced ones"):
        culux.gradient(lambda g: optim.update(state, ps, g)[1].layer_1.weight.sum(), g)
    with pytest.raises(
        errors.DifferentiationError, match=r"ps: expected plain arrays, got traced ones; update outside"
    ):
        culux.gradient(lambda ps: optim.update(state, ps, g)[1].layer_1.weight.sum(), ps)


def test_leaves_that_are_no_parameters():
    with pytest.raises(
        errors.DTypeError, match=r"a is float 1.0; a parameter is an array: numpy.asarray\(1.0, 'float32'"
    ):
        optim.setup(Adam(), Tree(a=1.0))
    with pytest.raises(errors.DTypeError, match=r"a.b: expected an array, a number, a string or None, got object"):
        optim.setup(Adam(), Tree(a=Tree(b=object())))
    with pytest.raises(errors.LayerError, match=r"expected parameters, got .*; ps, st = culux.setup\(rng, model\)"):
        optim.setup(Adam(), make_layer())


def make_layer():
    class Empty(culux.Layer):
        def __call__(self, x, ps, st):
            return x, st

    return Empty()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adam(lr=1e-3), "Adam takes no lr=; culux calls it learning_rate"),
        (lambda: Adam(eps=1e-3), "Adam takes no eps=; culux calls it epsilon"),
        (lambda: Adam(beta1=0.9), r"Adam takes no beta1=; culux calls it betas=\(beta1, beta2\)"),
        (lambda: Adam(learning_rat=1), r"Adam takes no learning_rat= \(did you mean 'learning_rate'\?\)"),
        (lambda: Adam(1, 2, 3, 4), r"Adam: too many positional arguments; it is Adam\(learning_rate=0.001"),
        (lambda: Adam(-1.0), "Adam: expected learning_rate >= 0, got -1.0"),
        (lambda: Adam(float("nan")), "Adam: expected learning_rate >= 0, got nan"),
        (lambda: Adam(epsilon=0.0), "Adam: expected epsilon > 0, got 0.0"),
        (lambda: Adam(betas=(0.9, 1.0)), "Adam: expected 0 <= betas < 1, got 1.0"),
        (lambda: Adam(betas=0.9), r"Adam: expected betas=\(beta1, beta2\), got float 0.9"),
        (lambda: Adam("fast"), "Adam: expected learning_rate to be a number or a schedule, got str 'fast'"),
        (lambda: Adam(parameters()), r"got Tree .*; a rule holds no parameters: culux.optim.setup\(Adam\(1e-3\), ps\)"),
        (lambda: AdamW(weight_decay=-1), "AdamW: expected weight_decay >= 0, got -1"),
        (lambda: RMSProp(alpha=1.5), "RMSProp: expected 0 <= alpha < 1, got 1.5"),
        (lambda: Momentum(0.1, -0.5), "Momentum: expected momentum >= 0, got -0.5"),
        (lambda: clip_norm(0), "clip_norm: expected max > 0, got 0"),
        (lambda: clip_norm(), r"clip_norm: missing a required argument: 'max'; it is clip_norm\(max\)"),
        (lambda: chain(), r"chain: expected rules, got none; chain\(clip_norm\(1.0\), Adam\(1e-3\)\)"),
        (lambda: chain(clip_norm(1.0), Adam), r"chain: expected a rule such as Adam\(1e-3\), got .*; call it: Adam\("),
        (lambda: groups([Adam()], default=Adam()), "groups: expected a dict of pattern -> rule, got list"),
        (lambda: groups({"a": 3}, default=Adam()), "groups at 'a': expected a rule such as .* got int 3"),
        (lambda: groups({"a": Adam()}), r"groups: missing a required .*'default'; it is groups\(rules, \*, default\)"),
    ],
)
def test_rules_that_are_spelled_wrong(call, message):
    with pytest.raises(errors.LayerError, match=message):
        call()


def test_patterns_that_fit_nothing():
    ps = parameters()
    state = optim.setup(Adam(), ps)
    for call, owner in (
        (lambda: optim.freeze(state, "layer_1.weigth"), "freeze"),
        (lambda: optim.thaw(state, "layer_1.weigth"), "thaw"),
        (lambda: optim.setup(chain(groups({"layer_1.weigth": Adam()}, default=Adam())), ps), "groups"),
    ):
        message = f"{owner}: no parameter fits 'layer_1.weigth' \\(did you mean 'layer_1.weight'\\?\\); the paths are: "
        with pytest.raises(errors.EntryError, match=message):
            call()


def test_adjust_of_what_no_rule_has():
    state = optim.setup(chain(clip_norm(1.0), Momentum()), parameters())
    with pytest.raises(
        errors.LayerError, match=r"takes no momentun= \(did you mean 'momentum'\?\); it takes max, learn"
    ):
        optim.adjust(state, momentun=0.3)
    with pytest.raises(errors.LayerError, match="takes no lr=; culux calls it learning_rate"):
        optim.adjust(state, lr=0.3)
    with pytest.raises(errors.LayerError, match="Momentum: expected learning_rate >= 0, got -1"):
        optim.adjust(state, learning_rate=-1)
