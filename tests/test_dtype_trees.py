"""f16, bf16, f32 and f64: trees in another float dtype, where they are."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import culux
from culux import Tree, optim
from culux.errors import DTypeError, LayerError, SpellingError
from tests.small_model import data, objective, train_state

CONVERSIONS = {"float16": culux.f16, "bfloat16": culux.bf16, "float32": culux.f32, "float64": culux.f64}


def name_of(leaf):
    return getattr(getattr(leaf, "dtype", None), "name", type(leaf).__name__)


def mixed():
    return Tree(
        half=np.ones(2, "float16"), brain=np.ones(2, ml_dtypes.bfloat16), single=np.full((2, 3), 0.1, "float32"),
        double=np.full((), 0.1), scalar=np.float64(0.1), brief=ml_dtypes.bfloat16(1.5), count=np.arange(3),
        flags=np.array([True]), key=np.ones(2, "uint64"), wave=np.ones(2, "complex64"), integer=np.int32(2), number=0.1,
        step=3, training=True, name="x", nothing=None, nested=[(np.ones(1),), {"a": np.zeros(1)}],
    )  # fmt: skip


FLOATS = {"half", "brain", "single", "double", "scalar", "brief", "nested.0.0", "nested.1.a"}


@pytest.mark.parametrize("dtype", CONVERSIONS)
def test_floats_are_converted_and_all_else_stays(dtype):
    values = mixed()
    found = dict(culux.tree.leaves_with_path(CONVERSIONS[dtype](values)))
    for path, leaf in culux.tree.leaves_with_path(values):
        if path in FLOATS:
            assert name_of(found[path]) == dtype
            expected = np.asarray(leaf).astype(dtype)
            np.testing.assert_array_equal(np.asarray(found[path]), expected)
            assert isinstance(found[path], np.generic) == isinstance(leaf, np.generic)
        else:
            assert found[path] is leaf
    assert culux.tree.structure(CONVERSIONS[dtype](values)) == culux.tree.structure(values)
    assert values.single.dtype == np.float32


def test_an_array_that_has_the_dtype_stays_the_same_object_and_ties_stay():
    w, v = np.ones(2, "float32"), np.ones(2)
    found = culux.f32(Tree(w=w, encoder=v, decoder=v))
    assert found.w is w
    assert found.encoder is found.decoder


def test_on_a_device_the_arrays_stay_there(standin_cupy):
    device = culux.gpu_device()
    there = device(Tree(w=np.full(3, 0.1), i=np.arange(3)))
    for dtype, conversion in CONVERSIONS.items():
        found = conversion(there)
        assert culux.get_device(found) == device
        assert name_of(found.w) == dtype
        assert found.i is there.i
        np.testing.assert_array_equal(culux.to_numpy(found.w), np.full(3, 0.1).astype(dtype))


def test_the_array_api_strict_backend(strict):
    found = culux.f32(Tree(w=strict.from_host(np.ones(3), 0), i=strict.from_host(np.arange(3), 0)))
    assert (str(found.w.dtype), str(found.i.dtype)) == ("array_api_strict.float32", "array_api_strict.int64")


def test_tensors_are_taken_in_as_a_device_takes_them():
    torch = pytest.importorskip("torch")
    found = culux.f16(Tree(w=torch.ones(2), i=torch.arange(2)))
    assert type(found.w) is np.ndarray
    assert (found.w.dtype, found.i.dtype) == (np.float16, np.int64)


@pytest.mark.parametrize("dtype", CONVERSIONS)
def test_the_gradient_comes_back_in_the_dtype_of_the_argument(dtype):
    ps = Tree(w=np.array([0.5, -2.0, 3.0], "float32"), v=np.array(4.0), i=np.arange(3))

    def loss(ps):
        converted = CONVERSIONS[dtype](ps)
        assert {name_of(culux.stop_gradient(converted[name])) for name in ("w", "v")} == {dtype}
        return (converted.w * converted.w * converted.v).sum()

    found = culux.gradient(loss, ps)
    assert (found.w.dtype, found.v.dtype, found.i) == (np.float32, np.float64, None)
    np.testing.assert_array_equal(found.w, [4, -16, 24])
    np.testing.assert_array_equal(found.v, 13.25)


def test_a_traced_array_that_has_the_dtype_is_not_converted():
    def same(x):
        assert culux.f32(x) is x
        return x.sum()

    culux.gradient(same, np.ones(2, "float32"))


def test_the_gradient_through_two_conversions_against_differences():
    def f(x):
        return (culux.f64(culux.f32(x)) ** 3).sum()

    x = np.array([0.5, -1.25])
    for i, step in enumerate(np.eye(2) * 2.0**-10):
        slope = (f(x + step) - f(x - step)) / 2.0**-9
        np.testing.assert_allclose(culux.gradient(f, x)[i], slope, rtol=1e-5)


def test_a_functor_is_converted_into_a_new_one():
    @culux.functor
    class Affine:
        A: culux.Array
        count: culux.Array

    m = Affine(np.ones(2, "float32"), np.arange(2))
    found = culux.f16(m)
    assert type(found) is Affine
    assert (found.A.dtype, found.count, m.A.dtype) == (np.float16, m.count, np.float32)


def test_a_train_state_in_another_dtype_evaluates_and_says_that_its_optimiser_does_not_fit():
    ts = culux.f64(train_state())
    assert {name_of(leaf) for leaf in culux.tree.leaves((ts.parameters, ts.states.mean))} == {"float64"}
    assert ts.states.rng.key.dtype == np.uint64
    assert ts.step == 0
    culux.training.evaluate(objective, [data(4)], ts)
    message = r"ps.w: expected float32, which optim.setup got, got float64 array of shape \(3, 5\); after a conversion"
    with pytest.raises(DTypeError, match=message + r" make the state anew: opt = culux.optim.setup\(rule, ps\)"):
        culux.training.single_train_step(objective, data(4), ts)
    anew = culux.training.TrainState(ts.layer, ts.parameters, ts.states, ts.rule)
    _, _, anew = culux.training.single_train_step(objective, culux.f64(data(4)), anew)
    assert anew.parameters.w.dtype == np.float64


def test_converted_moments_are_refused_where_the_parameters_are_not_the_last_ones():
    ps = Tree(w=np.ones(2, "float32"))
    state, ps = optim.update(optim.setup(optim.Adam(), ps), ps, culux.tree.map(np.ones_like, ps))
    with pytest.raises(DTypeError, match=r"the optimiser state: expected float32, which .* got, got float16 array"):
        optim.update(culux.f16(state), ps, culux.tree.map(np.ones_like, ps))
    again, _ = optim.update(culux.f32(culux.cpu_device()(state)), ps, culux.tree.map(np.ones_like, ps))
    assert again.step == 2


def test_layers_are_refused_with_what_to_convert():
    layer = culux.Dense(2, 3)
    message = r"expected arrays, got the layer Dense; a layer holds no arrays: convert its parameters and states"
    with pytest.raises(LayerError, match=message + r", ps, st = culux.bf16\(ps\), culux.bf16\(st\)"):
        culux.bf16(layer)
    m = culux.StatefulLayer(layer, *culux.setup(0, layer))
    message = r"at m: expected arrays, got StatefulLayer\(Dense\(2, 3\)\); convert its parts: m = culux.StatefulLayer\("
    with pytest.raises(LayerError, match=message + r"m.layer, culux.f16\(m.ps\), culux.f16\(m.st\)\)"):
        culux.f16({"m": m})
    with pytest.raises(DTypeError, match=r"at a: expected an array, a number, a string or None, got object"):
        culux.f16({"a": object()})
    for name in ("half", "bfloat16", "double"):
        function = {"half": "f16", "bfloat16": "bf16", "double": "f64"}[name]
        with pytest.raises(SpellingError, match=rf"has no .{name}\(\): convert trees: ps, st = culux.{function}\(ps\)"):
            getattr(layer, name)
