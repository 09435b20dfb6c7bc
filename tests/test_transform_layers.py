"""`culux.transform` of every torch module that culux has a layer for, against torch itself, and of what has none."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

import culux
from culux import interop
from culux.errors import ShapeError
from culux.interop.from_torch import FromTorch
from tests.support import requires
from tests.torch_modules import close, culux_gradients, normal, torch_gradients


@pytest.fixture
def torch():
    torch = requires("torch")
    torch.manual_seed(0)
    return torch


AFFINE = {"affine": True, "track_running_stats": True, "eps": 1e-3, "momentum": 0.3}

# A module's name, arguments and keywords, the layer, and the shape of an input.
MODULES = [
    ("Linear", (5, 3), {"bias": False}, "Dense", (4, 5)),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2, "bias": False}, "Conv", (2, 4, 9)),
    ("Conv1d", (4, 6, 4), {"padding": "same", "dilation": 2}, "Conv", (2, 4, 9)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}, "Conv", (2, 4, 7, 6)),
    ("Conv2d", (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, "Conv", (2, 2, 5, 6)),
    ("Conv2d", (2, 3, 4), {"padding": "same", "padding_mode": "reflect"}, "Conv", (2, 2, 5, 6)),
    ("Conv2d", (2, 3, 3), {"padding": "valid", "padding_mode": "replicate"}, "Conv", (2, 2, 5, 6)),
    ("Conv3d", (2, 4, 3), {"padding": (1, 2, 0), "padding_mode": "replicate", "groups": 2}, "Conv", (2, 2, 4, 5, 3)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1, "groups": 2}, "ConvTranspose", (2, 4, 5)),
    ("ConvTranspose2d", (3, 2, (3, 2)), {"stride": (2, 3), "padding": 1}, "ConvTranspose", (2, 3, 4, 3)),
    ("ConvTranspose3d", (2, 3, 2), {"dilation": 2, "bias": False}, "ConvTranspose", (2, 2, 3, 4, 2)),
    ("BatchNorm1d", (3,), {"eps": 1e-3}, "BatchNorm", (4, 3, 5)),
    ("BatchNorm3d", (3,), {"momentum": 0.4}, "BatchNorm", (4, 3, 2, 3, 2)),
    ("InstanceNorm1d", (3,), AFFINE, "InstanceNorm", (4, 3, 5)),
    ("InstanceNorm2d", (3,), {}, "InstanceNorm", (4, 3, 5, 4)),
    ("InstanceNorm2d", (3,), {"track_running_stats": True}, "InstanceNorm", (4, 3, 5, 4)),
    ("InstanceNorm3d", (3,), {"affine": True}, "InstanceNorm", (4, 3, 2, 3, 2)),
    ("GroupNorm", (2, 6), {"eps": 1e-3}, "GroupNorm", (3, 6, 4, 5)),
    ("GroupNorm", (3, 6), {"affine": False}, "GroupNorm", (3, 6, 4)),
    ("LayerNorm", ((4, 5),), {"eps": 1e-3}, "LayerNorm", (3, 4, 5)),
    ("LayerNorm", (5,), {"elementwise_affine": False}, "LayerNorm", (3, 4, 5)),
    ("RMSNorm", ((4, 5),), {}, "RMSNorm", (3, 4, 5)),
    ("RMSNorm", (5,), {"eps": 1e-2, "elementwise_affine": False}, "RMSNorm", (3, 5)),
    ("MaxPool1d", (3,), {"stride": 2, "padding": 1}, "MaxPool", (2, 3, 8)),
    ("MaxPool2d", ((2, 3),), {}, "MaxPool", (2, 3, 6, 7)),
    ("MaxPool2d", (2,), {"stride": 1, "dilation": (3, 2)}, "MaxPool", (2, 3, 6, 7)),
    ("MaxPool3d", (2,), {"stride": (1, 2, 1)}, "MaxPool", (2, 3, 4, 4, 3)),
    ("AvgPool1d", (3,), {"padding": 1}, "MeanPool", (2, 3, 8)),
    ("AvgPool2d", (3,), {"stride": (2, 1), "padding": (1, 0)}, "MeanPool", (2, 3, 6, 7)),
    ("AvgPool3d", (2,), {"count_include_pad": False}, "MeanPool", (2, 3, 4, 4, 3)),
    ("LPPool1d", (2, 3), {"stride": 2}, "LPPool", (2, 3, 8)),
    ("LPPool2d", (4, (2, 3)), {}, "LPPool", (2, 3, 6, 7)),
    ("LPPool3d", (2, 2), {}, "LPPool", (2, 3, 4, 4, 2)),
    ("AdaptiveAvgPool1d", (3,), {}, "AdaptiveMeanPool", (2, 3, 7)),
    ("AdaptiveAvgPool2d", ((None, 2),), {}, "AdaptiveMeanPool", (2, 3, 4, 5)),
    ("AdaptiveAvgPool3d", (1,), {}, "AdaptiveMeanPool", (2, 3, 3, 4, 2)),
    ("AdaptiveMaxPool1d", (1,), {}, "AdaptiveMaxPool", (2, 3, 7)),
    ("AdaptiveMaxPool2d", ((3, None),), {}, "AdaptiveMaxPool", (2, 3, 4, 5)),
    ("AdaptiveMaxPool3d", (2,), {}, "AdaptiveMaxPool", (2, 3, 3, 4, 2)),
    ("Upsample", (), {"scale_factor": 2}, "Upsample", (2, 3, 4)),
    ("Upsample", (), {"size": (5, 7)}, "Upsample", (2, 3, 4, 5)),
    ("Upsample", (), {"scale_factor": 1.5, "mode": "linear"}, "Upsample", (2, 3, 5)),
    ("Upsample", (), {"scale_factor": (2, 3), "mode": "bilinear", "align_corners": True}, "Upsample", (2, 3, 4, 5)),
    ("Upsample", (), {"size": 4, "mode": "trilinear"}, "Upsample", (2, 3, 2, 3, 2)),
    ("UpsamplingNearest2d", (), {"scale_factor": 2}, "Upsample", (2, 3, 4, 5)),
    ("UpsamplingBilinear2d", (), {"size": (7, 6)}, "Upsample", (2, 3, 4, 5)),
    ("PixelShuffle", (2,), {}, "PixelShuffle", (2, 8, 3, 2)),
    ("Unflatten", (1, (2, 3)), {}, "ReshapeLayer", (4, 6)),
    ("Flatten", (), {}, "FlattenLayer", (4, 2, 3)),
]  # fmt: skip


def made(torch, name, args, options):
    """A module in float64 whose parameters and statistics are no defaults."""
    module = getattr(torch.nn, name)(*args, **options).double()
    for tensor in [*module.parameters(), *[b for b in module.buffers() if b.is_floating_point()]]:
        torch.nn.init.uniform_(tensor, 0.2, 1.0)
    return module


def same_parameters(layer, grads, expected):
    """Whether gradients by culux's names are those by torch's."""
    names = layer.torch_names() if isinstance(layer, FromTorch) else {}
    found = {names[path]: leaf for path, leaf in culux.tree.leaves_with_path(grads)}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient, expected[name], np.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args", "options", "kind", "shape"), MODULES)
def test_every_module_computes_what_torch_computes(torch, name, args, options, kind, shape, training):
    module = made(torch, name, args, options).train(training)
    x = normal(*shape, dtype=np.float64) + (0.5 if name != "LPPool1d" else 3)
    layer = culux.transform(module, example=x)
    assert isinstance(layer, getattr(culux, kind))
    ps, st = culux.setup(0, layer)
    y, new, grads, dx = culux_gradients(layer, x, ps, st)
    expected, expected_grads, expected_dx = torch_gradients(torch, module, x)
    close(y, expected, np.float64)
    close(dx, expected_dx, np.float64)
    same_parameters(layer, grads, expected_grads)
    assert culux.output_shape(layer, shape) == y.shape
    for statistic in ("running_mean", "running_var"):
        assert (statistic in new) == (getattr(module, statistic, None) is not None)
        if statistic in new:
            close(new[statistic], getattr(module, statistic).numpy(), np.float64)


def test_embeddings_and_bilinear_layers(torch):
    table = made(torch, "Embedding", (7, 3), {"sparse": True})
    layer = culux.transform(table, example=np.array([[0, 6], [2, 2]]))
    assert isinstance(layer, culux.Embedding)
    ps, st = culux.setup(0, layer)
    ids = np.array([1, 5, 1])
    grads = culux.gradient(lambda ps: (layer(ids, ps, st)[0] ** 2).sum(), ps)
    table(torch.from_numpy(ids)).square().sum().backward()
    close(grads.weight, table.weight.grad.to_dense().numpy(), np.float64)

    module = made(torch, "Bilinear", (4, 3, 2), {"bias": False})
    x, y = normal(5, 4, dtype=np.float64), normal(5, 3, dtype=np.float64)
    layer = culux.transform(module, example=(x, y))
    assert isinstance(layer, culux.Bilinear)
    close(layer((x, y), *culux.setup(0, layer))[0], module(*map(torch.from_numpy, (x, y))).detach().numpy(), np.float64)


def test_alpha_dropout_has_torchs_moments_and_mode(torch):
    x = normal(200, 50)
    layer = culux.transform(torch.nn.AlphaDropout(0.25))
    assert isinstance(layer, culux.AlphaDropout)
    y, _ = layer(x, *culux.setup(0, layer))
    values, counts = np.unique(y, return_counts=True)
    expected = torch.nn.AlphaDropout(0.25)(torch.zeros(1000)).min().item()
    assert values[counts.argmax()] == pytest.approx(expected, rel=1e-5)
    assert abs(counts.max() / y.size - 0.25) < 0.02
    layer = culux.transform(torch.nn.AlphaDropout(0.25).eval())
    assert np.array_equal(layer(x, *culux.setup(0, layer))[0], x)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_dropout_of_channels(torch, axes):
    x = np.ones((30, 40, 3, 2, 2)[: axes + 2], np.float32)
    layer = culux.transform(getattr(torch.nn, f"Dropout{axes}d")(0.25), example=x)
    assert isinstance(layer, culux.Dropout)
    y, _ = layer(x, *culux.setup(0, layer))
    channels = y.reshape(30, 40, -1)
    assert np.array_equal(channels.min(-1), channels.max(-1))
    assert abs((channels[..., 0] == 0).mean() - 0.25) < 0.05
    with pytest.raises(ShapeError, match=rf"expected x.ndim == {axes + 2}, got {axes + 1}"):
        layer(x[0], *culux.setup(0, layer))


RECURRENT = [
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ("RNN", {"num_layers": 2, "bias": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "batch_first": False}),
    ("LSTM", {"bias": False}),
    ("GRU", {"num_layers": 3}),
    ("GRU", {"bidirectional": True}),
    ("GRU", {"bidirectional": True, "batch_first": False}),
    ("RNNCell", {"nonlinearity": "relu"}),
    ("RNNCell", {"bias": False}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
]  # fmt: skip


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize(("name", "options"), RECURRENT)
def test_recurrent_modules_are_called_as_in_torch(torch, name, options, carried):
    cell = name.endswith("Cell")
    module = made(torch, name, (3, 4), options if cell else {"batch_first": True, **options})
    x = normal(2, 3, dtype=np.float64) if cell else normal(2, 5, 3, dtype=np.float64)
    x = x if options.get("batch_first", True) else x.swapaxes(0, 1).copy()
    rows = () if cell else (options.get("num_layers", 1) * (2 if "bidirectional" in options else 1),)
    h = normal(*rows, 2, 4, dtype=np.float64)
    carry = (h, h + 1) if name.startswith("LSTM") else h
    inputs = (x, carry) if carried else x
    layer = culux.transform(module)
    assert isinstance(layer.layer, getattr(culux, name))
    ps, st = culux.setup(0, layer)

    def loss(ps, inputs):
        y = layer(inputs, ps, st)[0]
        leaves = culux.tree.leaves(y)
        return sum((leaf * leaf).sum() for leaf in leaves), y

    (_, y), (grads, dx) = culux.value_and_gradient(loss, ps, inputs, has_aux=True)
    leaves, structure = culux.tree.flatten(inputs)
    tensors = [torch.from_numpy(leaf).requires_grad_() for leaf in leaves]
    given = culux.tree.unflatten(structure, tensors)
    expected = module(*given) if carried else module(given)
    found = culux.tree.flatten(culux.tree.map(lambda tensor: tensor.detach().numpy(), expected))
    sum(leaf.square().sum() for leaf in culux.tree.leaves(expected)).backward()
    assert culux.tree.structure(y) == found[1]
    for leaf, wanted in zip(culux.tree.leaves(y), found[0], strict=True):
        close(leaf, wanted, np.float64)
    for leaf, tensor in zip(culux.tree.leaves(dx), tensors, strict=True):
        close(leaf, tensor.grad.numpy(), np.float64)
    same_parameters(layer.layer, grads, {name: p.grad.numpy() for name, p in module.named_parameters()})
    assert culux.output_shape(layer, x.shape) == culux.tree.map(lambda leaf: leaf.shape, y)
    assert culux.transform(module, example=inputs) == layer


def test_dropout_between_recurrent_levels(torch):
    module = torch.nn.GRU(3, 4, num_layers=3, dropout=0.4, batch_first=True)
    x = normal(2, 5, 3)
    layer = culux.transform(module, example=x)
    ps, st = culux.setup(0, layer)
    assert (st.dropout_1.training, st.dropout_2.training, layer.layer.dropout) == (True, True, 0.4)
    assert not np.array_equal(layer(x, ps, st)[0][0], layer(x, ps, culux.test_mode(st))[0][0])
    assert culux.initial_states(0, culux.transform(module.eval())).dropout_2.training is False


def test_recurrent_modules_in_a_sequential(torch):
    nn = torch.nn

    class Last(nn.Module):
        def forward(self, result):
            y, (h, _) = result
            return y[:, -1] + h[0]

    module = nn.Sequential(nn.Embedding(9, 3), nn.LSTM(3, 4, batch_first=True), Last(), nn.GRUCell(4, 5))
    ids = np.array([[1, 2, 8], [0, 5, 5]])
    layer = culux.transform(module, example=ids)
    with torch.no_grad():
        close(layer(ids, *culux.setup(0, layer))[0], module(torch.from_numpy(ids)).numpy())
    kinds = [line.split()[-2:] for line in interop.report(module).splitlines()[2:]]
    assert kinds[:2] + kinds[3:] == [["Embedding", "culux"], ["LSTM", "culux"], ["GRUCell", "culux"]]
    assert repr(layer[2]) == "TorchLayer(Last(), unpack=False)"


def test_parameters_go_back_to_torch(torch):
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Flatten(2),
        nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True),
    )  # fmt: skip
    ps, st = culux.setup(0, layer := culux.transform(module))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ps, st = culux.tree.map(lambda leaf: leaf + 1 if isinstance(leaf, np.ndarray) else leaf, (ps, st))
    interop.copy_to_torch(layer, ps, st)
    for name, value in module.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, before[name] + 1), name


def test_layers_of_modules_pickle(torch):
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.MaxPool1d(2))
    ps, st = culux.setup(0, layer := culux.transform(module))
    x = normal(2, 2, 9)
    copy = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(copy(x, ps, st)[0], layer(x, *culux.setup(1, copy))[0])


NOT_NATIVE = [
    ("Embedding", (4, 3), {"padding_idx": 0}, "padding_idx=0 has no counterpart"),
    ("Embedding", (4, 3), {"max_norm": 1.0}, "max_norm=1.0 has no counterpart"),
    ("Embedding", (4, 3), {"scale_grad_by_freq": True}, "scale_grad_by_freq=True has no counterpart"),
    ("Unflatten", (2, (2, 3)), {}, "dim=2 has no counterpart"),
    ("GroupNorm", (2, 4), {"bias": False}, "a scale without a bias has no counterpart"),
    ("BatchNorm2d", (4,), {"bias": False}, "a scale without a bias has no counterpart"),
    ("InstanceNorm1d", (4,), {"affine": True, "bias": False}, "a scale without a bias has no counterpart"),
    ("InstanceNorm1d", (4,), {"momentum": None}, "momentum=None (the average of all batches) has no counterpart"),
    ("MaxPool1d", (2,), {"return_indices": True}, "return_indices=True has no counterpart"),
    ("MaxPool3d", (2,), {"ceil_mode": True}, "ceil_mode=True has no counterpart"),
    ("AvgPool2d", (2,), {"padding": 1, "count_include_pad": False}, "count_include_pad=False has no counterpart"),
    ("AvgPool2d", (2,), {"ceil_mode": True}, "ceil_mode=True has no counterpart"),
    ("AvgPool3d", (2,), {"divisor_override": 3}, "divisor_override=3 has no counterpart"),
    ("LPPool2d", (2, 2), {"ceil_mode": True}, "ceil_mode=True has no counterpart"),
    ("LPPool2d", (float("inf"), 2), {}, "LPPool: expected p to be"),
    ("AdaptiveMaxPool2d", (2,), {"return_indices": True}, "return_indices=True has no counterpart"),
    ("Upsample", (), {"scale_factor": 2, "mode": "bicubic"}, "Upsample: expected mode to be one of"),
    ("Upsample", (), {"scale_factor": 2, "recompute_scale_factor": True}, "recompute_scale_factor=True has no"),
    ("LSTM", (3, 4), {"batch_first": True, "proj_size": 2}, "proj_size=2 has no counterpart"),
    ("FeatureAlphaDropout", (0.5,), {}, "no counterpart"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "options", "reason"), NOT_NATIVE)
def test_options_without_a_counterpart_stay_with_torch(torch, name, args, options, reason):
    module = getattr(torch.nn, name)(*args, **options)
    assert type(culux.transform(module)) is interop.TorchLayer
    assert re.search(f"torch: {re.escape(reason)}", interop.report(module))


def test_inputs_that_the_layer_reads_otherwise_than_the_module_are_refused(torch):
    """Torch takes a sample without a batch, whose axes the layer would take for others."""
    nn = torch.nn
    for module, shape, message in [
        (nn.MaxPool2d(2), (3, 4, 4), r"expected window to have 1 numbers"),
        (nn.AvgPool1d(2), (3, 4), r"expected x of shape \(batch, channels, \*spatial\)"),
        (nn.LPPool2d(2, 2), (3, 4, 4), r"expected window to have 1 numbers"),
        (nn.AdaptiveAvgPool2d(2), (3, 4, 4), r"expected output_size to have 1 "),
        (nn.Conv2d(3, 4, 2), (3, 4, 4), r"expected x of shape \(batch, channels, \*spatial\) with 2"),
        (
            nn.InstanceNorm2d(3),
            (3, 3, 3),
            r"expected x.ndim == 4, got 3 \(x has shape \(3, 3, 3\)\); torch's InstanceN",
        ),
        (nn.PixelShuffle(2), (4, 4, 4), r"expected x.ndim == 4, got 3 .*torch's PixelShuffle takes others as culux.in"),
        (nn.Unflatten(1, (2, 2)), (3, 4, 1), r"expected x.ndim == 2, got 3 .* culux.interop.TorchLayer\(module\)"),
        (nn.GRU(3, 4, batch_first=True), (5, 3), r"expected x of shape \(batch, time, features\)"),
    ]:
        layer = culux.transform(module)
        with pytest.raises(ShapeError, match=message):
            layer(normal(*shape), *culux.setup(0, layer))
