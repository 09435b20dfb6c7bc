"""`culux.debug_mode`: which layer and operation an error names, and that right programs stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux import Chain, Dense, Dropout, losses, optim, training
from culux.errors import DTypeError, LayerError, NonFiniteError


def _x(shape=(5, 3), dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _chain(function):
    """A model whose second layer's second layer is `function`, with its parameters and states."""
    model = Chain(Dense(3, 4), Chain(Dense(4, 4), function))
    return model, *culux.setup(0, model)


def test_a_right_model_gives_the_same_values_states_and_gradients():
    model = Chain(Dense(3, 4, culux.relu), culux.BatchNorm(4), Dropout(0.5), Dense(4, 2))
    ps, st = culux.setup(0, model)

    def loss(ps):
        y, new = model(_x(), ps, st)
        return (y**2).sum(), new

    plain = model(_x(), ps, st), culux.value_and_gradient(loss, ps, has_aux=True)
    with culux.debug_mode():
        checked = model(_x(), ps, st), culux.value_and_gradient(loss, ps, has_aux=True)
    for a, b in zip(culux.tree.leaves(plain), culux.tree.leaves(checked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert type(a) is type(b)


def _call(model, ps, st):
    return model(_x(), ps, st)[0]


def _gradient(model, ps, st):
    return culux.gradient(lambda ps: _call(model, ps, st).sum(), ps)


@pytest.mark.parametrize("run", [_call, _gradient])
def test_forward_nan_names_the_layer_and_the_operation(run):
    with culux.debug_mode(), pytest.raises(NonFiniteError) as caught:
        run(*_chain(lambda x: cnp.log(x - 100.0)))
    text = str(caught.value)
    assert text.startswith("in layer_2.layer_2 (WrappedFunction(<lambda>)): log gives NaN ("), text
    assert "NaN in 20 of 20 elements) from float32 array of shape (5, 4), in [-" in text


def test_backward_nan_names_the_layer_and_the_operation():
    with culux.debug_mode(), pytest.raises(NonFiniteError) as caught:
        _gradient(*_chain(lambda x: cnp.sqrt(x - x) * 0.0))
    text = str(caught.value)
    assert text.startswith("in the backward pass of layer_2.layer_2 (WrappedFunction(<lambda>)): sqrt gives NaN"), text
    assert "from the cotangent float32 array of shape (5, 4), in [0, 0]" in text


def test_backward_nan_outside_of_layers_names_the_line():
    with culux.debug_mode(), pytest.raises(NonFiniteError, match=r"backward pass of .*test_debug_mode\.py:\d+: sqrt"):
        culux.gradient(lambda x: (cnp.sqrt(x - x) * 0.0).sum(), _x())


def test_nan_in_one_of_several_outputs_cotangents_is_found():
    @culux.custom_gradient
    def halves(x):
        return (x[:2], x[2:]), lambda dy: np.full_like(x, np.nan)

    def loss(x):
        first, _ = halves(x)
        return first.sum()

    with culux.debug_mode(), pytest.raises(NonFiniteError, match="halves gives NaN for argument 1"):
        culux.gradient(loss, _x())


def test_nan_from_outside_is_told_apart():
    model, ps, st = _chain(cnp.tanh)
    with culux.debug_mode():
        with pytest.raises(NonFiniteError, match=r"x holds NaN when it comes to this layer.*NaN in 15 of 15"):
            model(np.full((5, 3), np.nan, np.float32), ps, st)
        poisoned = ps.replace({"layer_2.layer_1.bias": np.array([0, np.nan, 0, 0], np.float32)})
        with pytest.raises(NonFiniteError, match=r"ps\.layer_2\.layer_1\.bias holds NaN.*NaN in 1 of 4 elements"):
            model(_x(), poisoned, st)


def test_a_layer_on_plain_arrays_is_checked_at_its_ends():
    model, ps, st = _chain(lambda x: np.asarray(x) * np.nan)  # np.asarray refuses traced arrays
    with culux.debug_mode(), pytest.raises(NonFiniteError, match=r"in layer_2\.layer_2 .*NaN appears in what this la"):
        model(_x(), ps, st)
    model, ps, st = _chain(lambda x: np.asarray(x) * 2)
    with culux.debug_mode():
        np.testing.assert_array_equal(model(_x(), ps, st)[0], model(_x(), ps, st)[0])


def test_infinities_pass():
    model, ps, st = _chain(lambda x: cnp.where(x > 1e6, x, -np.inf))
    with culux.debug_mode():
        assert np.isinf(model(_x(), ps, st)[0]).all()


@pytest.mark.parametrize("other", [np.arange(4), np.ones(4)], ids=["int64", "float64"])
def test_promotion_names_the_layer_and_the_operation(other):
    model, ps, st = _chain(lambda x: x * other)
    expected = (
        rf"in layer_2\.layer_2 .*: multiply gives float64 from float32 array.*{other.dtype} array of shape \(4,\)"
    )
    with culux.debug_mode():
        with pytest.raises(DTypeError, match=expected):
            model(_x(), ps, st)
        with pytest.raises(DTypeError, match=expected):
            culux.gradient(lambda ps: model(_x(), ps, st)[0].sum(), ps)
    with culux.debug_mode(promotion=False):
        assert model(_x(), ps, st)[0].dtype == np.float64


def test_float64_throughout_and_written_conversions_are_no_promotion():
    model, ps, st = _chain(lambda x: x * np.ones(4))
    ps = culux.cpu_device(dtype="float64")(ps)
    with culux.debug_mode():
        assert model(_x(dtype=np.float64), ps, st)[0].dtype == np.float64
    model, ps, st = _chain(lambda x: cnp.astype(x, "float64"))
    with culux.debug_mode():
        assert model(_x(), ps, st)[0].dtype == np.float64


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_false_lets_nan_pass():
    model, ps, st = _chain(lambda x: cnp.log(x - 100.0))
    with culux.debug_mode(nan=False):
        assert np.isnan(model(_x(), ps, st)[0]).all()


def _training_state():
    return training.TrainState.create(0, Dense(3, 2), optim.Adam(1e-3))


def test_a_training_state_used_twice():
    batch, ts = (_x(), _x((5, 2))), _training_state()
    with culux.debug_mode():
        _, _, after = training.single_train_step(losses.MSELoss(), batch, ts)
        training.single_train_step(losses.MSELoss(), batch, after)
        with pytest.raises(LayerError, match=r"compute_gradients got the training state of step 1 that compute_gradie"):
            training.single_train_step(losses.MSELoss(), batch, after)
    with culux.debug_mode(reuse=False):
        training.single_train_step(losses.MSELoss(), batch, after)
        training.single_train_step(losses.MSELoss(), batch, after)


def test_gradients_put_to_the_old_training_state():
    batch, ts = (_x(), _x((5, 2))), _training_state()
    with culux.debug_mode():
        grads, *_ = training.compute_gradients(losses.MSELoss(), batch, ts)
        with pytest.raises(LayerError, match="apply_gradients got the training state of step 0 that compute_gradients"):
            training.apply_gradients(ts, grads)


def test_fit_runs_under_it():
    batches = [(_x(), _x((5, 2)))] * 3
    with culux.debug_mode():
        ts, _ = training.fit(losses.MSELoss(), batches, _training_state(), epochs=2, progress=False)
    assert ts.step == 6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_it_ends_with_its_context_and_nests():
    model, ps, st = _chain(lambda x: cnp.log(x - 100.0))
    with culux.debug_mode(nan=False):
        with culux.debug_mode(), pytest.raises(NonFiniteError):
            model(_x(), ps, st)
        model(_x(), ps, st)
    assert np.isnan(model(_x(), ps, st)[0]).all()


def test_on_the_gpu(standin_cupy):
    model, ps, st = _chain(lambda x: cnp.log(x - 100.0))
    gpu = culux.gpu_device(force=True)
    with culux.debug_mode(), pytest.raises(NonFiniteError, match=r"in layer_2\.layer_2 .*: log gives NaN"):
        model(gpu(_x()), gpu(ps), gpu(st))


def test_second_derivatives_run_under_it():
    def slope(x):
        return culux.gradient(lambda x: (x**3).sum(), x).sum()

    with culux.debug_mode():
        np.testing.assert_allclose(culux.gradient(slope, _x()), 6 * _x(), rtol=1e-5)
