"""with_precision: a layer in another dtype than that of its parameters."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import culux
from culux import (
    LSTM,
    BatchNorm,
    Chain,
    Conv,
    Dense,
    Dropout,
    Embedding,
    FlattenLayer,
    GroupNorm,
    LayerNorm,
    LSTMCell,
    Parallel,
    StatefulRecurrentCell,
    WrappedFunction,
    optim,
    relu,
    tanh,
    with_precision,
)
from culux import numpy as cnp
from culux.errors import DTypeError, LayerError
from culux.testing import cost
from culux.training import TrainState, fit
from tests.layers_support import RNG, X, ran
from tests.small_model import SmallModel, data, objective, training_batches

DTYPES = ("float16", "bfloat16", "float32", "float64")


class Seen(culux.Layer):
    """Notes in `SEEN` which dtypes it gets: of x, its parameters and its state."""

    def initial_parameters(self, rng):
        return {"w": np.ones(2, "float32"), "count": np.arange(2)}

    def initial_states(self, rng):
        return {"mean": np.zeros(2, "float32"), "calls": 0}

    def __call__(self, x, ps, st):
        SEEN.append(tuple(str(culux.stop_gradient(a).dtype) for a in (*culux.tree.leaves(x), ps.w, ps.count, st.mean)))
        y = culux.tree.map(lambda a: a * ps.w, x)
        first = culux.stop_gradient(culux.tree.leaves(y)[0])
        return y, st.replace(mean=first.mean(axis=0), calls=st.calls + 1)


SEEN: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()


@pytest.mark.parametrize("compute", DTYPES)
def test_what_the_layer_gets_and_what_comes_back(compute):
    layer = with_precision(Seen(), compute)
    ps, st = culux.setup(0, layer)
    x = np.array([[1 / 3, 2], [3, 4]], "float32")

    def loss(ps, x):
        y, new = layer(x, ps, st)
        assert culux.stop_gradient(y).dtype == np.float32
        return (y * y).sum(), new

    (value, new), (grads, dx) = culux.value_and_gradient(loss, ps, x, has_aux=True)
    assert SEEN == [(compute, compute, "int64", "float32")]
    assert (grads.w.dtype, grads.count, dx.dtype) == (np.float32, None, np.float32)
    assert (new.mean.dtype, new.calls) == (np.float32, 1)
    rounded = x.astype(compute).astype("float64")
    np.testing.assert_allclose(value, (rounded**2).sum(), rtol=1e-2 if compute.endswith("16") else 1e-6)
    np.testing.assert_allclose(grads.w, 2 * (rounded**2).sum(0), rtol=2e-2 if compute.endswith("16") else 1e-6)
    assert (float(layer(x, ps, st)[0][0, 0]) == np.float32(1 / 3)) == (compute in ("float32", "float64"))


def test_the_output_has_the_dtype_that_is_asked_for_else_that_of_the_parameters_else_of_x():
    x = X.astype("float16")
    for output in DTYPES:
        assert ran(with_precision(Dense(3, 2), "float16", output=output), x)[0].dtype.name == output
    assert ran(with_precision(Dense(3, 2), "float16"), X.astype("float64"))[0].dtype == np.float32
    assert ran(with_precision(Dense(3, 2), "float16"), x)[0].dtype == np.float32
    layer = with_precision(Dense(3, 2), "float32")
    assert layer(X, *map(culux.f16, culux.setup(0, layer)))[0].dtype == np.float16
    assert ran(with_precision(relu, "bfloat16"), x)[0].dtype == np.float16
    assert ran(with_precision(WrappedFunction(lambda x: cnp.astype(x, "float32")), "bfloat16"), np.arange(3))[
        0
    ].dtype == (ml_dtypes.bfloat16)


def test_integers_tuples_and_trees_pass():
    ids = np.array([[1, 2, 0]])
    y, ps, _ = ran(with_precision(Embedding(4, 2), "float16"), ids)
    np.testing.assert_array_equal(y, ps.weight[ids].astype("float16").astype("float32"))
    layer = with_precision(Parallel(None, Dense(3, 2), Embedding(4, 2)), "float16", output="float64")
    (first, second), _, _ = ran(layer, (X, ids))
    assert (first.dtype, second.dtype, first.shape) == (np.float64, np.float64, (5, 2))
    named = with_precision(WrappedFunction(lambda x: {"y": x["a"] + 1, "mask": x["mask"]}), "float16")
    y, *_ = ran(named, {"a": X, "mask": X > 0})
    assert (y["y"].dtype, y["mask"].dtype) == (np.float32, np.bool_)


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Chain(Conv((3, 3), 2, 4, tanh), GroupNorm(4, 2), FlattenLayer(), LayerNorm(64), Dense(64, 3)), (5, 2, 6, 6)),
        (Chain(Dense(3, 8), BatchNorm(8, tanh), Dropout(0.5), Dense(8, 3)), (5, 3)),
        (LSTM(3, 4), (2, 5, 3)),
        (StatefulRecurrentCell(LSTMCell(3, 4)), (2, 3)),
    ],
    ids=["conv", "batchnorm", "lstm", "stateful"],
)
def test_it_is_near_the_layer_in_float32(layer, shape, compute):
    x = RNG.standard_normal(shape).astype("float32")
    half = with_precision(layer, compute)
    ps, st = culux.setup(0, layer)
    assert repr(culux.setup(0, half)[0]) == repr(ps)

    def run(layer):
        def loss(ps):
            y, new = layer(x, ps, st)
            assert culux.stop_gradient(y).dtype == np.float32
            return (y * y).mean(), (y, new)

        return culux.value_and_gradient(loss, ps, has_aux=True)

    ((_, (y, new)), grads), ((_, (expected, states)), slopes) = run(half), run(layer)
    np.testing.assert_allclose(y, expected, atol=0.1)
    assert np.abs(y - expected).max() > 0  # it was another dtype
    for one, other in zip(culux.tree.leaves(grads), culux.tree.leaves(slopes), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=0.1)
    for (path, one), other in zip(culux.tree.leaves_with_path(new), culux.tree.leaves(states), strict=True):
        if "running" in path:
            assert one.dtype == np.float32
        if getattr(one, "dtype", None) != np.float32 and "carry" not in path:
            np.testing.assert_array_equal(one, other)
    again, _ = half(x, ps, culux.test_mode(new))
    assert again.dtype == np.float32


def test_running_statistics_are_not_rounded_to_half():
    layer = with_precision(BatchNorm(3), "float16")
    x = RNG.standard_normal((50, 3)).astype("float16").astype("float32")
    _, st = layer(x, *culux.setup(0, layer))
    np.testing.assert_allclose(st.running_mean, 0.1 * x.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(st.running_var, 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-6)
    # and sums are taken in float32: this one is not to be had in float16
    big = np.full((2000, 3), 60.0, "float32") + x[:1]
    _, st = layer(big, *culux.setup(0, layer))
    np.testing.assert_allclose(st.running_mean, 0.1 * big.astype("float16").astype("float64").mean(0), rtol=1e-4)


def test_batchnorm_beside_float32_statistics_runs_on_the_kernels(standin_cupy):
    layer = with_precision(BatchNorm(4, relu), "float16")
    device = culux.gpu_device()
    ps, st = culux.setup(0, layer)
    x = RNG.standard_normal((6, 4)).astype("float32")

    def grads(ps, st, x):
        def loss(ps):
            y, new = layer(x, ps, st)
            return (y * y).sum(), new

        return culux.value_and_gradient(loss, ps, has_aux=True)

    (value, new), found = grads(device(ps), device(st), device(x))
    (expected, states), slopes = grads(ps, st, x)
    np.testing.assert_allclose(float(value.get()), expected, rtol=1e-2)
    np.testing.assert_allclose(culux.to_numpy(new).running_var, states.running_var, rtol=1e-3)
    np.testing.assert_allclose(culux.to_numpy(found).scale, slopes.scale, rtol=2e-2)
    assert found.scale.dtype == np.float32
    kernels = dict(cost(grads, device(ps), device(st), device(x)).kernels)
    assert any("batchnorm" in name for name in kernels)
    evaluated = dict(cost(layer, device(x), device(ps), culux.test_mode(device(st))).kernels)
    assert any("batchnorm" in name for name in evaluated)


def test_one_inside_another():
    layer = with_precision(Chain(Seen(), with_precision(Seen(), "float32"), Seen()), "bfloat16")
    y, *_ = ran(layer, np.ones((1, 2), "float32"))
    assert [seen[0] for seen in SEEN] == ["bfloat16", "float32", "bfloat16"]
    assert y.dtype == np.float32
    SEEN.clear()
    inner = with_precision(Seen(), "float32", output="float64")
    y, *_ = ran(with_precision(Chain(Seen(), inner, Seen()), "float16", output="float32"), np.ones((1, 2), "float32"))
    assert [seen[0] for seen in SEEN] == ["float16", "float32", "float64"]
    assert y.dtype == np.float32


def test_it_is_a_record_like_other_layers():
    layer = with_precision(Chain(Dense(3, 4, relu), Dense(4, 2)), compute=np.float16, output="float32")
    text = "with_precision(Chain(Dense(3, 4, relu), Dense(4, 2)), 'float16', output='float32')"
    assert repr(layer) == text
    assert repr(with_precision(relu)) == "with_precision(WrappedFunction(relu))"
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other == layer
        assert hash(other) == hash(layer)
    assert layer != with_precision(layer.layer, "bfloat16", output="float32")
    assert culux.output_shape(layer, (7, 3)) == (7, 2)
    assert str(layer) == f"{text}  # 26 parameters\ntotal: 26 parameters"
    assert culux.parameter_length(Chain(layer, Dense(2, 1))) == 29


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_a_model_learns(compute):
    ts = TrainState.create(0, with_precision(SmallModel(), compute), optim.Adam(0.05))
    before = culux.training.evaluate(objective, [data(40, seed=1)], ts).loss
    ts, _ = fit(objective, training_batches(), ts, epochs=20, progress=False)
    assert {leaf.dtype for leaf in culux.tree.leaves(ts.parameters)} == {np.dtype("float32")}
    assert ts.states.mean.dtype == np.float32
    assert culux.training.evaluate(objective, [data(40, seed=1)], ts).loss < 0.3 * before


def test_small_steps_are_not_lost_in_the_master_weights():
    """A hundred steps of 1e-4 move a float32 weight of 1 to 0.99; one of float16 would not move at all."""
    layer = with_precision(Dense(1, 1, use_bias=False, init_weight=culux.init.ones), "float16")
    ts = TrainState.create(0, layer, optim.Descent(1e-4))
    for _ in range(100):
        _, _, ts = culux.training.single_train_step(
            lambda layer, ps, st, x: (layer(x, ps, st)[0].sum(), st, {}), np.ones((1, 1), "float32"), ts
        )
    np.testing.assert_allclose(ts.parameters.weight, 0.99, rtol=1e-5)


def test_refused():
    message = r"expected one of float16, float32, float64, bfloat16, got int8: only floats are converted"
    with pytest.raises(DTypeError, match=message):
        with_precision(Dense(2, 2), "int8")
    with pytest.raises(DTypeError, match=r"expected one of float16, .*, got 'half precision'"):
        with_precision(Dense(2, 2), compute="half precision")
    with pytest.raises(DTypeError, match=r"expected one of float16, .*, got complex64"):
        with_precision(Dense(2, 2), output="complex64")
    with pytest.raises(LayerError, match="with_precision: expected layers or functions, got str 'float16'"):
        with_precision("float16", Dense(2, 2))
    with pytest.raises(LayerError, match=r"with_precision takes no dtype=; it takes layer, compute, output"):
        with_precision(Dense(2, 2), dtype="float16")
    with pytest.raises(culux.errors.ShapeError, match=r"in Dense\(3, 2\): expected x.shape\[-1\] == 3, got 4"):
        ran(with_precision(Dense(3, 2)), np.ones((1, 4), "float32"))
