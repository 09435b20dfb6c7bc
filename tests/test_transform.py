"""`culux.transform`: what becomes of torch modules, against torch itself."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import culux
from culux import interop
from culux.errors import LayerError
from tests.support import requires
from tests.torch_modules import close, culux_gradients, custom, normal, torch_gradients


@pytest.fixture
def torch():
    torch = requires("torch")
    torch.manual_seed(0)
    return torch


class Wrap(culux.WrapperLayer):
    layer: culux.Layer


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
    interop.copy_to_torch(Wrap(made), ps, st)
    for name, value in module.state_dict().items():
        if "num_batches_tracked" not in name:
            close(fresh.state_dict()[name].numpy(), value.numpy())


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
    mixed = custom(torch)
    mixed.norm.double()
    with pytest.raises(LayerError, match=r"one floating dtype .* got torch.float32, torch.float64; convert the module"):
        culux.transform(mixed)
    with pytest.raises(LayerError, match=r"ModuleList has no forward, so it says nothing .* one by one: culux.Chain"):
        culux.transform(torch.nn.ModuleList([torch.nn.Linear(2, 2)]))


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
