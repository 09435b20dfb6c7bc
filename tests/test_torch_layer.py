"""`TorchLayer`: torch modules computed and differentiated by torch, against torch itself."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import interop
from culux.errors import DifferentiationError, LayerError, ShapeError
from tests.support import requires
from tests.torch_modules import close, culux_gradients, custom, normal, torch_gradients


@pytest.fixture
def torch():
    torch = requires("torch")
    torch.manual_seed(0)
    return torch


@pytest.mark.parametrize("training", [True, False])
def test_torch_layer_computes_and_differentiates_by_torch(torch, training):
    module = custom(torch).train(training)
    layer = culux.transform(module)
    assert isinstance(layer, interop.TorchLayer)
    ps, st = culux.setup(0, layer)
    assert ps.parameters.shape == (4 * 4 + 4 + 4 + 4,)
    buffers = {name: buffer.clone().numpy() for name, buffer in module.named_buffers()}
    assert [path for path, _ in culux.tree.leaves_with_path(st.buffers)] == list(buffers)
    x = normal(6, 4)
    y, new, grads, dx = culux_gradients(layer, x, ps, st)
    for name, buffer in module.named_buffers():
        assert np.array_equal(buffer.numpy(), buffers[name])  # the module's own stay, and the old state's
    np.testing.assert_array_equal(st.buffers.norm.running_mean, buffers["norm.running_mean"])
    expected, expected_grads, expected_dx = torch_gradients(torch, module, x)
    close(y, expected)
    close(dx, expected_dx)
    close(grads.parameters, np.concatenate([grad.ravel() for grad in expected_grads.values()]))
    close(new.buffers.norm.running_var, module.norm.running_var.numpy())
    assert new.buffers.norm.num_batches_tracked == int(training)
    plain, plain_st = layer(x, ps, st)
    np.testing.assert_array_equal(plain, y)
    np.testing.assert_array_equal(plain_st.buffers.norm.running_mean, new.buffers.norm.running_mean)


def test_the_mode_of_a_torch_layer_is_its_state(torch):
    module = custom(torch)
    module.norm.eval()  # frozen statistics in a training module
    layer = culux.transform(module)
    ps, st = culux.setup(0, layer)
    x = normal(6, 4)
    with torch.no_grad():
        own = module(torch.from_numpy(x)).numpy()
        tested = module.eval()(torch.from_numpy(x)).numpy()
        module.train()
        module.norm.eval()
    np.testing.assert_array_equal(layer(x, ps, st)[0], own)
    np.testing.assert_array_equal(layer(x, ps, culux.test_mode(st))[0], tested)
    assert (module.training, module.linear.training, module.norm.training) == (True, True, False)


def test_several_inputs_outputs_and_integers(torch):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(10, 3)

        def forward(self, ids, x, extra):
            y = self.table(ids) * x
            return {"y": y, "rest": (y.argmax(1), extra["scale"] * x, "constant")}

    module = Pair()
    layer = culux.transform(module)
    ps, st = culux.setup(0, layer)
    ids, x, scale = np.array([1, 2, 1]), normal(3, 3), normal(3, 3)

    def loss(ps, x, scale):
        out, _ = layer((ids, x, {"scale": scale}), ps, st)
        return (out["y"] + out["rest"][1]).sum(), out["rest"]

    (_, (best, _, constant)), (grads, dx, dscale) = culux.value_and_gradient(loss, ps, x, scale, has_aux=True)
    table = ps.parameters.reshape(10, 3)
    np.testing.assert_allclose(dx, table[ids] + scale, rtol=1e-6)
    np.testing.assert_array_equal(dscale, x)
    expected = np.zeros((10, 3), np.float32)
    np.add.at(expected, ids, x)
    np.testing.assert_allclose(grads.parameters.reshape(10, 3), expected, rtol=1e-6)
    np.testing.assert_array_equal(best, (table[ids] * x).argmax(1))
    assert constant == "constant"
    lookup = interop.TorchLayer(torch.nn.Embedding(10, 3))
    ps, st = culux.setup(0, lookup)
    grads = culux.gradient(lambda ps: lookup(ids, ps, st)[0].sum(), ps)
    assert grads.parameters.reshape(10, 3).sum(1).tolist() == [0, 6, 3, 0, 0, 0, 0, 0, 0, 0]


def test_checkpointed_modules_run_again_with_the_same_parameters(torch):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = custom(torch)

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    module = Checkpointed()
    plain, layer = culux.transform(module.inner), culux.transform(module)
    ps, st = culux.setup(0, plain)
    ps = ps.replace(parameters=normal(*ps.parameters.shape))  # not the module's own
    x = normal(6, 4)
    expected = culux_gradients(plain, x, ps, st)
    got = culux_gradients(layer, x, ps, {**st, "buffers": {"inner": st.buffers}})
    np.testing.assert_array_equal(got[2].parameters, expected[2].parameters)
    np.testing.assert_array_equal(got[3], expected[3])
    np.testing.assert_array_equal(got[1].buffers.inner.norm.running_mean, expected[1].buffers.norm.running_mean)


def test_recurrent_modules_and_named_results_of_torch(torch):
    module = torch.nn.LSTM(3, 4, num_layers=2, batch_first=True)
    layer = interop.TorchLayer(module)
    ps, st = culux.setup(0, layer)
    x, h = normal(2, 5, 3), normal(2, 2, 4)
    (y, (_, cell)), _ = layer((x, (h, h)), ps.replace(parameters=0.5 * ps.parameters), st)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
        hidden = torch.from_numpy(h)
        expected, (_, expected_cell) = module(torch.from_numpy(x), (hidden, hidden))
    close(y, expected.numpy())
    close(cell, expected_cell.numpy())

    class Largest(torch.nn.Module):
        def forward(self, x):
            return x.max(dim=1)

    values, places = culux.apply(culux.transform(Largest()), h[0], {}, {"buffers": {}, "training": True})[0]
    assert type(values) is np.ndarray
    np.testing.assert_array_equal(values, h[0].max(1))
    np.testing.assert_array_equal(places, h[0].argmax(1))


def test_pullbacks_run_twice_and_unused_inputs_get_zeros(torch):
    class First(torch.nn.Module):
        def forward(self, a, b):
            return a.exp(), b.detach()

    layer = culux.transform(First())
    ps, st = culux.setup(0, layer)
    assert dict(ps) == {}
    a, b = normal(3), normal(3)
    (y, _), pullback = culux.vjp(lambda a, b: layer((a, b), ps, st)[0], a, b)
    for _ in range(2):
        da, db = pullback((2 * np.ones(3, np.float32), np.ones(3, np.float32)))
        np.testing.assert_allclose(da, 2 * y, rtol=1e-6)
        np.testing.assert_array_equal(db, np.zeros(3, np.float32))


def test_arrays_that_torch_cannot_share_are_copied_and_inputs_are_never_written(torch):
    class InPlace(torch.nn.Module):
        def forward(self, x):
            return x.mul_(2)

    layer = culux.transform(InPlace())
    ps, st = culux.setup(0, layer)
    x = normal(4, 6)
    frozen = x.copy()
    frozen.flags.writeable = False
    for view in (x, x[::-1], x.T, frozen, np.broadcast_to(x[0], (3, 6)), x[:, ::2]):
        before = view.copy()
        np.testing.assert_array_equal(layer(view, ps, st)[0], 2 * before)
        dx = culux.gradient(lambda v: layer(v, ps, st)[0].sum(), view)
        np.testing.assert_array_equal(dx, np.full(view.shape, 2, np.float32))
        np.testing.assert_array_equal(view, before)


def test_results_are_arrays_that_may_be_written_to(torch):
    class Expanded(torch.nn.Module):
        def forward(self, x):
            return x.sum().expand(3)

    layer = culux.transform(Expanded())
    ps, st = culux.setup(0, layer)
    assert layer(normal(2), ps, st)[0].flags.carray
    assert culux.gradient(lambda x: layer(x, ps, st)[0].sum(), normal(2)).flags.carray


def test_traced_states_and_integers_have_no_gradient(torch):
    class Best(torch.nn.Module):
        def forward(self, x):
            return x.argmax(1), x

    best, table = culux.transform(Best()), interop.TorchLayer(torch.nn.Embedding(4, 4))
    ps, st = culux.setup(0, table)

    def loss(x):
        ids, y = best(x, {}, {"buffers": {}, "training": True})[0]
        return (table(ids, ps, st)[0] * y).sum()

    x = normal(5, 4)
    np.testing.assert_array_equal(culux.gradient(loss, x), ps.parameters.reshape(4, 4)[x.argmax(1)])
    norm = culux.transform(custom(torch).eval())
    ps, st = culux.setup(0, norm)

    def of_state(mean):
        return norm(x, ps, st.replace({"buffers.norm.running_mean": mean}))[0].sum()

    assert culux.gradient(of_state, st.buffers.norm.running_mean).tolist() == [0, 0, 0, 0]


def test_output_shape_of_a_torch_layer(torch):
    model = culux.Chain(interop.TorchLayer(torch.nn.Conv2d(3, 8, 3)), culux.FlattenLayer())
    assert culux.output_shape(model, (2, 3, 6, 6)) == (2, 8 * 4 * 4)
    with pytest.raises(LayerError, match="output shape of this module is not known without calling it"):
        culux.output_shape(interop.TorchLayer(torch.nn.Embedding(10, 3)), (4,))


def test_torch_layers_among_culux_layers(torch):
    conv = torch.nn.Conv1d(2, 3, 2)
    model = culux.Chain(culux.ReshapeLayer((2, 4)), interop.TorchLayer(conv), culux.FlattenLayer(), culux.Dense(9, 2))
    ps, st = culux.setup(0, model)
    x = normal(5, 8, dtype=np.float64)
    ps, st = culux.cpu_device(dtype="float64")((ps, st))

    def loss(flat):
        return (model(x, ps.replace({"layer_2.parameters": flat}), st)[0] ** 2).sum()

    flat = ps.layer_2.parameters
    grads = culux.gradient(loss, flat)
    steps = 1e-6 * np.eye(flat.size)
    numeric = [(loss(flat + step) - loss(flat - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(grads, numeric, rtol=1e-6)


@pytest.mark.gpu
def test_torch_layers_on_a_gpu_compute_on_cupys_stream(torch):
    cupy = requires("cupy")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    layer = culux.transform(custom(torch))
    ps, st = culux.setup(0, layer)
    x = normal(6, 4)
    expected = culux_gradients(layer, x, ps, st)
    device = culux.gpu_device(force=True)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        y, new, grads, dx = culux_gradients(layer, device(x), device(ps), device(st))
        stream.synchronize()
    assert isinstance(y, cupy.ndarray)
    close(cupy.asnumpy(y), expected[0])
    close(cupy.asnumpy(new.buffers.norm.running_var), expected[1].buffers.norm.running_var)
    close(cupy.asnumpy(grads.parameters), expected[2].parameters)
    close(cupy.asnumpy(dx), expected[3])


def test_wrong_use_of_a_torch_layer(torch):
    layer = culux.transform(torch.nn.Sequential(torch.nn.PReLU(3)))
    ps, st = culux.setup(0, layer)
    x = normal(2, 3)
    with pytest.raises(
        ShapeError, match=r"in layer_1 \(TorchLayer.*expected ps.parameters of shape \(3,\), got shape \(4,\)"
    ):
        layer(x, ps.replace({"layer_1.parameters": np.zeros(4)}), st)
    with pytest.raises(ShapeError, match=r"expected ps.parameters of shape \(3,\), got none; ps is of another model"):
        layer(x, {"layer_1": {}}, st)

    class Clamped(torch.nn.PReLU):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(0, 0.1)
            return super().forward(x)

    clamped = culux.transform(Clamped(3))
    for call in (clamped, lambda x, ps, st: culux.gradient(lambda ps: clamped(x, ps, st)[0].sum(), ps)):
        with pytest.raises(LayerError, match="the module wrote to its parameters in place"):
            call(x, *culux.setup(0, clamped))

    def norm_of_gradient(x):
        dx = culux.gradient(lambda x: (layer(x, ps, st)[0] ** 2).sum(), x)
        return (dx * dx).sum()

    with pytest.raises(DifferentiationError, match=r"no second derivatives.*culux.interop.report\(module\)"):
        culux.gradient(norm_of_gradient, x)
    _, pullback = culux.vjp(lambda x: layer(x, ps, st)[0], x)
    with pytest.raises(DifferentiationError, match="no second derivatives"):
        culux.gradient(lambda dy: pullback(dy)[0].sum(), x)
    with pytest.raises(ShapeError, match=r"scale: expected shape \(3,\), got \(2,\)"):
        interop.copy_to_torch(culux.transform(torch.nn.LayerNorm(3)), {"scale": np.zeros(2)}, {})
