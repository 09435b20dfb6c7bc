"""Random architectures of all layers agree with their twins in torch: values, states and gradients, in both modes."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

import culux
import culux.layers
from tests.architectures.draw import COUNT, architecture
from tests.architectures.part import arrays, tensors
from tests.support import requires

drawn = functools.cache(architecture)


@pytest.fixture
def torch():
    return requires("torch")


def setup(seed, layer):
    """Parameters and states in float64, none of which has its default."""
    rng = np.random.default_rng(seed)
    ps, st = culux.cpu_device(dtype="float64")(culux.setup(seed, layer))

    def moved(leaf):
        floats = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
        return leaf + 0.2 * rng.uniform(0.1, 1, leaf.shape) if floats else leaf

    return culux.tree.map(moved, (ps, st))


def in_torch(torch, part, x, ps, st, training, dy):
    """What the twin gives: y, the new states, and the gradients of ``(y * dy).sum()``."""
    own, states = tensors(ps, trained=True), tensors(st, trained=False)
    given = torch.tensor(x, requires_grad=x.dtype.kind == "f")
    y = part.twin(given, own, states, training)
    y.backward(torch.tensor(dy))
    leaves = culux.tree.leaves_with_path(own)
    grads = {path: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for path, p in leaves}
    return y.detach().numpy(), arrays(states), grads, None if given.grad is None else given.grad.numpy()


def in_culux(layer, x, ps, st, dy):
    def loss(ps, x):
        y, new = layer(x, ps, st)
        return (y * dy).sum(), (y, new)

    if x.dtype.kind != "f":
        (_, (y, new)), grads = culux.value_and_gradient(lambda ps: loss(ps, x), ps, has_aux=True)
        return y, new, dict(culux.tree.leaves_with_path(grads)), None
    (_, (y, new)), (grads, dx) = culux.value_and_gradient(loss, ps, x, has_aux=True)
    return y, new, dict(culux.tree.leaves_with_path(grads)), dx


def agree(got, expected, where):
    """Whether arrays agree to 1e-9 of the largest element; other leaves are equal."""
    if got is expected is None:
        return
    if getattr(expected, "dtype", np.dtype(int)).kind != "f":
        np.testing.assert_array_equal(got, expected, err_msg=where)
        return
    assert got.dtype == expected.dtype == np.float64, where
    assert np.isfinite(expected).all(), where
    tolerance = 1e-9 * max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=where)


def all_agree(found, expected, where):
    """The same for trees, by path."""
    found, expected = (dict(culux.tree.leaves_with_path(entries)) for entries in (found, expected))
    assert list(found) == list(expected), where
    for path, leaf in expected.items():
        agree(found[path], leaf, f"{path} of {where}")


@pytest.mark.parametrize("seed", range(COUNT))
def test_an_architecture_computes_what_torch_computes(torch, seed):
    part, x = drawn(seed)
    ps, st = setup(seed, part.layer)
    for training in (True, False):  # the test mode with the statistics that training left
        mode = culux.train_mode if training else culux.test_mode
        where = f"the architecture of seed {seed} in {mode.__name__}:\n{part.layer}\n"
        st = mode(st)
        shape = culux.output_shape(part.layer, x.shape)
        dy = np.random.default_rng(seed).standard_normal(shape)
        y, new, grads, dx = in_culux(part.layer, x, ps, st, dy)
        expected, states, expected_grads, expected_dx = in_torch(torch, part, x, ps, st, training, dy)
        assert y.shape == shape == expected.shape, where
        reached = [path for path, gradient in expected_grads.items() if np.abs(gradient).max() > 1e-6]
        assert len(reached) > 0.8 * len(grads), f"nothing to see: the gradient is 0 in most of {where}"
        agree(y, expected, f"y of {where}")
        all_agree(new, states, f"the states of {where}")
        all_agree(grads, expected_grads, f"the gradients of {where}")
        agree(dx, expected_dx, f"dx of {where}")
        st = new


@pytest.mark.parametrize("seed", range(COUNT))
def test_the_summary_shows_every_layer_and_counts(torch, seed):
    layer, _ = drawn(seed)
    text = str(layer.layer)
    assert {kind.__name__ for kind in kinds_in(layer.layer)} - set(text.replace("(", " ").split()) == set()
    assert f"total: {culux.parameter_length(layer.layer):,} parameters" in text.splitlines()[-1]


def kinds_in(layer):
    """The classes of a layer and of all below it."""
    return {type(layer)}.union(*[kinds_in(child) for child in layer.children().values()])


def test_all_layers_occur(torch):
    public = {value for value in vars(culux.layers).values() if inspect.isclass(value)}
    assert len(public) > 40
    found = set().union(*[kinds_in(drawn(seed)[0].layer) for seed in range(COUNT)])
    assert sorted(kind.__name__ for kind in public - found) == []
