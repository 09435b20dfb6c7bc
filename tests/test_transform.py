"""`culux.transform`: what becomes of torch modules, against torch itself."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import culux
from culux import interop
from culux.errors import DifferentiationError, LayerError, ShapeError
from tests.support import requires


@pytest.fixture
def torch():
    torch = requires("torch")
    torch.manual_seed(0)
    return torch


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def custom(torch):
    """A module with a forward of its own: no culux layer is known for it."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return x + torch.relu(self.norm(self.linear(x)))

    return Residual()


def torch_gradients(torch, module, x):
    """Torch's result for sum(y * y), and the gradients of its parameters by name and of x."""
    inputs = torch.from_numpy(x.copy()).requires_grad_()
    y = module(inputs)
    (y * y).sum().backward()
    parameters = dict(module.named_parameters())
    grads = {name: p.detach().numpy() * 0 if p.grad is None else p.grad.numpy() for name, p in parameters.items()}
    return y.detach().numpy(), grads, inputs.grad.numpy()


def culux_gradients(layer, x, ps, st):
    def loss(ps, x):
        y, new = layer(x, ps, st)
        return (y * y).sum(), (y, new)

    (_, (y, new)), (grads, dx) = culux.value_and_gradient(loss, ps, x, has_aux=True)
    return y, new, grads, dx


def close(got, expected, dtype=np.float32):
    tolerance = 1e-9 if dtype == np.float64 else 2e-4
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False])
def test_native_layers_compute_what_torch_computes(torch, dtype, training):
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6, eps=1e-3, momentum=0.3), nn.GELU(), nn.LayerNorm(6, eps=1e-4),
        nn.Identity(), nn.Linear(6, 3, bias=False), nn.Tanh(),
    )  # fmt: skip
    for tensor in [*module.parameters(), module[1].running_mean, module[1].running_var]:
        torch.nn.init.uniform_(tensor, 0.2, 1.0)
    module = module.double() if dtype == np.float64 else module
    module.train(training)
    layer = culux.transform(module)
    ps, st = culux.setup(0, layer)
    assert st.layer_2.training is training
    x = normal(7, 5, dtype=dtype)
    y, new, grads, dx = culux_gradients(layer, x, ps, st)
    expected, expected_grads, expected_dx = torch_gradients(torch, module, x)
    close(y, expected, dtype)
    close(dx, expected_dx, dtype)
    close(grads.layer_1.weight, expected_grads["0.weight"], dtype)
    close(grads.layer_1.bias, expected_grads["0.bias"], dtype)
    close(grads.layer_2.scale, expected_grads["1.weight"], dtype)
    close(grads.layer_4.scale, expected_grads["3.weight"], dtype)
    close(grads.layer_4.bias, expected_grads["3.bias"], dtype)
    close(grads.layer_6.weight, expected_grads["5.weight"], dtype)
    close(new.layer_2.running_mean, module[1].running_mean.numpy(), dtype)
    close(new.layer_2.running_var, module[1].running_var.numpy(), dtype)
    kinds = [culux.Dense, culux.BatchNorm, culux.WrappedFunction, culux.LayerNorm, culux.NoOpLayer]
    assert all(isinstance(child, kind) for child, kind in zip(layer, kinds, strict=False))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ReLU", {"inplace": True}), ("ReLU6", {}), ("LeakyReLU", {"negative_slope": 0.2}), ("ELU", {"alpha": 0.7}),
        ("SELU", {}), ("CELU", {"alpha": 1.3}), ("GELU", {}), ("GELU", {"approximate": "tanh"}), ("SiLU", {}),
        ("Hardswish", {}), ("Mish", {}), ("Sigmoid", {}), ("Hardsigmoid", {}), ("LogSigmoid", {}), ("Tanh", {}),
        ("Hardtanh", {}), ("Tanhshrink", {}), ("Softplus", {}), ("Softsign", {}), ("Softshrink", {"lambd": 0.3}),
    ],
)  # fmt: skip
def test_activations_become_native(torch, name, options):
    module = getattr(torch.nn, name)(**options)
    layer = culux.transform(module)
    assert isinstance(layer, culux.WrappedFunction)
    x = 3 * normal(4, 50, dtype=np.float64)
    y, _, _, dx = culux_gradients(layer, x, *culux.setup(0, layer))
    module = getattr(torch.nn, name)(**{**options, "inplace": False} if "inplace" in options else options)
    expected, _, expected_dx = torch_gradients(torch, module, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-8)  # torch has some constants in float32
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_images(torch, affine, track, training):
    module = torch.nn.BatchNorm2d(3, affine=affine, track_running_stats=track).train(training)
    layer = culux.transform(module)
    assert isinstance(layer, culux.BatchNorm)
    ps, st = culux.setup(0, layer)
    assert ("scale" in ps, "running_mean" in st) == (affine, track)
    x = 2 * normal(4, 3, 5, 5) + 1
    y, _, _, dx = culux_gradients(layer, x, ps, st)
    expected, _, expected_dx = torch_gradients(torch, module, x)
    close(y, expected)
    close(dx, expected_dx)


def test_dropout_has_its_own_masks_and_torchs_mode(torch):
    x = np.ones((50, 40), np.float32)
    layer = culux.transform(torch.nn.Dropout(0.25))
    ps, st = culux.setup(0, layer)
    y, new = layer(x, ps, st)
    assert isinstance(layer, culux.Dropout)
    assert abs((y == 0).mean() - 0.25) < 0.05
    assert y.max() == np.float32(1 / 0.75)
    assert not np.array_equal(new.rng.counter, st.rng.counter)
    layer = culux.transform(torch.nn.Dropout(0.25).eval())
    assert np.array_equal(layer(x, *culux.setup(0, layer))[0], x)


def test_setup_gives_copies_whatever_the_rng(torch):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), custom(torch), torch.nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    layer = culux.transform(module)
    (ps, st), (again, _) = culux.setup(0, layer), culux.setup(1, layer)
    for leaf, other in zip(culux.tree.leaves(ps), culux.tree.leaves(again), strict=True):
        assert np.array_equal(leaf, other)
        leaf += 1  # in place: a copy of the module's memory takes it
    for leaf in culux.tree.leaves(st):
        if isinstance(leaf, np.ndarray):
            leaf += 1
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        module[0].weight.zero_()
    np.testing.assert_array_equal(again.layer_1.weight, before["0.weight"].numpy())


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


def test_a_mixed_model_trains_as_torch_does(torch):
    nn = torch.nn
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), custom(torch), nn.Linear(4, 1))
    layer = culux.transform(module)
    ps, st = culux.setup(0, layer)
    opt = culux.optim.setup(culux.optim.Descent(0.05), ps)
    sgd = torch.optim.SGD(module.parameters(), lr=0.05)
    x, target = normal(16, 4), normal(16, 1)

    def loss(ps, st):
        y, st = layer(x, ps, st)
        return ((y - target) ** 2).mean(), st

    for _ in range(5):
        (value, st), grads = culux.value_and_gradient(lambda ps, st=st: loss(ps, st), ps, has_aux=True)
        opt, ps = culux.optim.update(opt, ps, grads)
        sgd.zero_grad()
        expected = ((module(torch.from_numpy(x)) - torch.from_numpy(target)) ** 2).mean()
        expected.backward()
        sgd.step()
        assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    close(ps.layer_1.weight, module[0].weight.detach().numpy())
    close(st.layer_2.running_var, module[1].running_var.numpy())
    close(st.layer_4.buffers.norm.running_mean, module[3].norm.running_mean.numpy())
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), custom(torch), nn.Linear(4, 1))
    made = culux.transform(fresh)
    interop.copy_to_torch(made, ps, st)
    for name, value in module.state_dict().items():
        if "num_batches_tracked" not in name:
            close(fresh.state_dict()[name].numpy(), value.numpy())


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
    lookup = culux.transform(torch.nn.Embedding(10, 3))
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
    layer = culux.transform(module)
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

    best, table = culux.transform(Best()), culux.transform(torch.nn.Embedding(4, 4))
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


def test_bfloat16_modules(torch):
    requires("ml_dtypes")
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU()).to(torch.bfloat16)
    ps, st = culux.setup(0, layer := culux.transform(module))
    assert ps.layer_1.weight.dtype.name == ps.layer_2.parameters.dtype.name == "bfloat16"
    x = ps.layer_1.weight
    expected = module[1](module[0].weight).detach().float().numpy()
    assert culux.transform(module, example=x) == layer
    np.testing.assert_array_equal(layer[1](x, ps.layer_2, st.layer_2)[0].astype(np.float32), expected)


def not_native(torch):
    """Modules that look like ones with a counterpart, each with the reason why it has none."""
    nn = torch.nn

    class Linear(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    def hooked(module):
        module.register_forward_hook(lambda module, args, y: 2 * y)
        return module

    def replaced():
        linear = nn.Linear(4, 4)
        linear.forward = lambda x: x + 1
        return linear

    yield Linear(4, 4), "no counterpart"
    yield hooked(nn.Linear(4, 4)), "it has hooks"
    yield hooked(nn.Sequential(nn.Linear(4, 4))), "it has hooks"
    yield replaced(), "its forward was replaced"
    yield nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "no counterpart"
    yield nn.BatchNorm1d(4, momentum=None), r"momentum=None \(the average of all batches\) has no counterpart"
    untracked = nn.BatchNorm1d(4)
    untracked.track_running_stats = False
    yield untracked, "track_running_stats set later has no counterpart"
    yield nn.LayerNorm(4, bias=False), "a scale without a bias has no counterpart"
    yield nn.Hardtanh(-2, 2), "min_val=-2.* has no counterpart"
    yield nn.Softplus(beta=2), "beta=2.* has no counterpart"
    yield nn.LeakyReLU(-0.5), "slope"
    yield nn.Flatten(0), "a range of axes has no counterpart"
    yield nn.PReLU(), "no counterpart"
    headless = custom(torch)
    headless.register_module("head", None)
    yield headless, "no counterpart"


def test_what_only_looks_like_a_native_layer_stays_with_torch(torch):
    x = normal(5, 4)
    for module, reason in not_native(torch):
        layer = culux.transform(module)
        assert type(layer) is interop.TorchLayer
        assert re.search(f"torch: .*{reason}", interop.report(module))
        expected, _, dx = torch_gradients(torch, module, x)
        module.zero_grad()
        y, _, _, got_dx = culux_gradients(layer, x, *culux.setup(0, layer))
        close(y, expected)
        close(got_dx, dx)


def test_tied_parameters_stay_tied(torch):
    linear = torch.nn.Linear(4, 4)
    module = torch.nn.Sequential(torch.nn.Sequential(linear, torch.nn.Tanh()), torch.nn.ReLU(), linear)
    layer = culux.transform(module)
    assert type(layer) is interop.TorchLayer
    ps, st = culux.setup(0, layer)
    assert ps.parameters.size == 20
    x = normal(3, 4)
    _, _, grads, _ = culux_gradients(layer, x, ps, st)
    assert module[0][0].weight is module[2].weight is linear.weight
    assert isinstance(linear.weight, torch.nn.Parameter)
    expected = torch_gradients(torch, module, x)[1]
    close(grads.parameters, np.concatenate([grad.ravel() for grad in expected.values()]))
    twice = torch.nn.ReLU()
    assert isinstance(culux.transform(torch.nn.Sequential(twice, torch.nn.Linear(2, 2), twice)), culux.Chain)


def test_names_of_children(torch):
    nn, names = torch.nn, lambda layer: list(layer.children())
    named = nn.Sequential()
    named.add_module("stem", nn.Linear(2, 2))
    named.add_module("head", nn.Sequential(nn.ReLU()))
    assert names(culux.transform(named)) == ["stem", "head"]
    assert names(culux.transform(named)["head"]) == ["layer_1"]
    named.add_module("keys", nn.Tanh())
    assert names(culux.transform(named)) == ["layer_1", "layer_2", "layer_3"]
    assert isinstance(culux.transform(nn.Sequential())[0], culux.NoOpLayer)


def test_output_shape_of_a_torch_layer(torch):
    model = culux.Chain(culux.transform(torch.nn.Conv2d(3, 8, 3)), culux.FlattenLayer())
    assert culux.output_shape(model, (2, 3, 6, 6)) == (2, 8 * 4 * 4)
    with pytest.raises(LayerError, match="output shape of this module is not known without calling it"):
        culux.output_shape(culux.transform(torch.nn.Embedding(10, 3)), (4,))


def test_torch_layers_among_culux_layers(torch):
    conv = torch.nn.Conv1d(2, 3, 2)
    model = culux.Chain(culux.ReshapeLayer((2, 4)), culux.transform(conv), culux.FlattenLayer(), culux.Dense(9, 2))
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


def test_the_report(torch):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), custom(torch), torch.nn.Sequential(torch.nn.ReLU()))
    module[0].weight.requires_grad_(False)
    table = interop.report(module)
    assert [line.split() for line in table.splitlines()[:2]] == [
        ["torch", "module", "culux", "layer", "computed", "by"],
        ["Sequential", "Chain", "culux"],
    ]
    assert [line.split() for line in table.splitlines()[2:6]] == [
        ["0", "Linear(in_features=4,", "out_features=4,", "bias=True)", "layer_1", "Dense", "culux"],
        ["1", "Residual", "layer_2", "TorchLayer", "torch:", "no", "counterpart"],
        ["2", "Sequential", "layer_3", "Chain", "culux"],
        ["2.0", "ReLU()", "layer_3.layer_1", "WrappedFunction(relu)", "culux"],
    ]
    assert table.splitlines()[6].endswith("unless culux.optim.freeze holds them: 0.weight")
    assert "DenseFromTorch(Linear(in_features=4, out_features=4, bias=True))" in str(culux.transform(module))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_that_cannot_become_layers(torch):
    with pytest.raises(LayerError, match=r"weight, bias: a lazy module has no shapes before its first call; run"):
        culux.transform(torch.nn.LazyLinear(3))
    with pytest.raises(
        LayerError, match=r"does not take its parameters from outside; transform the module that it was"
    ):
        culux.transform(torch.jit.script(torch.nn.Linear(2, 2)))
    with pytest.raises(LayerError, match=r"expected a torch.nn.Module, got .*; did you mean ReLU\(...\)\?"):
        culux.transform(torch.nn.ReLU)
    with pytest.raises(LayerError, match=r"expected a torch.nn.Module, got int 3$"):
        culux.transform(3)
    mixed = torch.nn.Bilinear(2, 2, 2)
    mixed.bias.data = mixed.bias.data.double()
    with pytest.raises(LayerError, match=r"one floating dtype .* got torch.float32, torch.float64; convert the module"):
        culux.transform(mixed)


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

    def norm_of_gradient(x):
        dx = culux.gradient(lambda x: (layer(x, ps, st)[0] ** 2).sum(), x)
        return (dx * dx).sum()

    with pytest.raises(DifferentiationError, match=r"no second derivatives.*culux.interop.report\(module\)"):
        culux.gradient(norm_of_gradient, x)
    _, pullback = culux.vjp(lambda x: layer(x, ps, st)[0], x)
    with pytest.raises(DifferentiationError, match="no second derivatives"):
        culux.gradient(lambda dy: pullback(dy)[0].sum(), x)
    with pytest.raises(ShapeError, match=r"weight: expected shape \(3,\), got \(2,\)"):
        interop.copy_to_torch(culux.transform(torch.nn.LayerNorm(3)), {"scale": np.zeros(2)}, {})


def test_the_example_checks_the_translation(torch):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    assert isinstance(culux.transform(module, example=normal(3, 4)), culux.Chain)
    assert isinstance(
        culux.transform(torch.nn.Bilinear(4, 4, 2), example=(normal(3, 4), torch.ones(3, 4))), culux.Layer
    )
    assert module.training
    assert module[2].training
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, y: y + 0.01)
    try:
        with pytest.raises(
            LayerError, match=r"differs from the torch module on the example: by up to 0\.0\d+, more than"
        ):
            culux.transform(module, example=normal(3, 4))
    finally:
        handle.remove()


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for function in (culux.transform, interop.report):
        with pytest.raises(ImportError, match=r'needs torch, which is not installed: pip install "culux\[torch\]"'):
            function(object())


def test_importing_culux_imports_no_torch():
    code = "import sys, culux.interop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
