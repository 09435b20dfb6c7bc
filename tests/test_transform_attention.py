"""`culux.transform` of torch's attention and transformers, against torch itself, and of what stays with torch."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

import culux
from culux import interop
from culux.errors import ShapeError
from tests.support import requires
from tests.torch_modules import close, normal


@pytest.fixture
def torch():
    torch = requires("torch")
    torch.manual_seed(0)
    return torch


def sequences(*shape):
    return normal(*shape, dtype=np.float64)


def same(torch, module, inputs):
    """Whether layer and module agree on what they return, and on the gradients of all parameters and arrays."""
    layer = culux.transform(module, example=inputs)
    assert not isinstance(layer, interop.TorchLayer)
    ps, st = culux.setup(0, layer)

    def loss(ps, inputs):
        y = layer(inputs, ps, st)[0]
        return sum((leaf**2).sum() for leaf in culux.tree.leaves(y) if leaf is not None), y

    (_, y), (grads, slopes) = culux.value_and_gradient(loss, ps, inputs, has_aux=True)
    given = [
        torch.from_numpy(value).requires_grad_(value.dtype == np.float64) if isinstance(value, np.ndarray) else value
        for value in (inputs if isinstance(inputs, tuple) else (inputs,))
    ]
    module.zero_grad()
    expected = module(*given)
    outputs = expected if isinstance(expected, tuple) else (expected,)
    sum(part.square().sum() for part in outputs if part is not None).backward()
    found = y if isinstance(y, tuple) else (y,)
    for part, wanted in zip(found, outputs, strict=True):
        assert (part is None) == (wanted is None)
        if part is not None:
            close(part, wanted.detach().numpy(), np.float64)
    for slope, tensor in zip(slopes if isinstance(slopes, tuple) else (slopes,), given, strict=True):
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            close(slope, tensor.grad.numpy(), np.float64)
    leaves = dict(culux.tree.leaves_with_path(grads))
    for name, parameter in module.named_parameters():
        close(in_torch(leaves, name), parameter.grad.numpy(), np.float64)
    return layer, y


def in_torch(leaves, name):
    """What culux's leaves by path have for one of torch's parameters."""
    path = re.sub(r"\blayers\.(\d+)", lambda number: f"layers_{int(number[1]) + 1}", name)
    path = re.sub(r"(norm\d?)\.weight", r"\1.scale", path).replace("_proj_", "_proj.")
    if "in_proj" not in path:
        return leaves[path]
    return np.concatenate([leaves[path.replace("in_proj", f"{part}_proj")] for part in "qkv"])


def spread(torch, module):
    """A module in float64 whose parameters are no defaults."""
    for parameter in module.double().parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.9)
    return module


ATTENTION = [
    {"batch_first": True},
    {"batch_first": False},
    {"batch_first": True, "bias": False},
    {"batch_first": False, "kdim": 5, "vdim": 3},
    {"batch_first": True, "kdim": 5, "vdim": 8, "bias": False},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", ATTENTION)
def test_attention_is_called_as_in_torch(torch, options, training):
    module = spread(torch, torch.nn.MultiheadAttention(8, 4, **options)).train(training)
    shapes = [(2, 3, 8), (2, 5, options.get("kdim", 8)), (2, 5, options.get("vdim", 8))]
    shapes = shapes if options["batch_first"] else [(time, batch, dims) for batch, time, dims in shapes]
    inputs = tuple(sequences(*shape) for shape in shapes)
    layer, (y, weights) = same(torch, module, inputs)
    assert weights.shape == (2, 3, 5)
    assert culux.output_shape(layer, tuple(shapes)) == (y.shape, weights.shape)
    assert isinstance(layer.layer, culux.MultiHeadAttention)
    assert pickle.loads(pickle.dumps(layer)).layer.num_heads == 4
    assert culux.transform(module) == layer
    native = culux.MultiHeadAttention(
        8, num_heads=4, key_dims=shapes[1][2], value_dims=shapes[2][2], use_bias=options.get("bias", True)
    )
    for made, own in zip(culux.setup(0, layer), culux.setup(0, native), strict=True):
        assert culux.tree.structure(made) == culux.tree.structure(own)


PADDING = np.array([[False, False, True, True, False], [True, False, False, False, False]])
HIDDEN = np.triu(np.ones((3, 5), bool), 2)
EVERY_HEAD = np.random.default_rng(3).random((4, 3, 5)) < 0.3
MASKS = [
    (PADDING,),
    (None, True, HIDDEN),
    (PADDING, True, HIDDEN),
    (PADDING, False, HIDDEN),
    (PADDING, True, HIDDEN, False),
    (None, True, EVERY_HEAD, False),
    (None, True, np.where(HIDDEN, -np.inf, 0.5)),
    (None, True, sequences(4, 3, 5)),
    (np.where(PADDING, -np.inf, 0.2), True, sequences(3, 5)),
]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_masks_of_attention(torch, masks, batch_first):
    module = spread(torch, torch.nn.MultiheadAttention(4, 2, batch_first=batch_first))
    q, kv = sequences(2, 3, 4), sequences(2, 5, 4)
    q, kv = (q, kv) if batch_first else (q.swapaxes(0, 1).copy(), kv.swapaxes(0, 1).copy())
    same(torch, module, (q, kv, kv + 1, *masks))


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_a_bool_mask_beside_a_float_one(torch):
    module = spread(torch, torch.nn.MultiheadAttention(4, 2, batch_first=True))
    same(torch, module, (sequences(2, 3, 4), sequences(2, 5, 4), sequences(2, 5, 4), PADDING, True, sequences(3, 5)))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_one_sequence(torch, batch_first):
    module = spread(torch, torch.nn.MultiheadAttention(4, 2, batch_first=batch_first))
    q, kv = sequences(3, 4), sequences(5, 4)
    same(torch, module, (q, kv, kv + 1))
    same(torch, module, (q, kv, kv + 1, PADDING[1], True, np.stack([HIDDEN, HIDDEN[::-1]])))


def test_a_step_that_may_attend_to_nothing_finds_zeros(torch):
    layer = culux.transform(torch.nn.MultiheadAttention(4, 2, bias=False, batch_first=True))
    x = normal(1, 3, 4)
    (y, weights), _ = layer((x, x, x, np.ones((1, 3), bool)), *culux.setup(0, layer))
    assert not y.any()
    assert not weights.any()


def test_dropout_of_attention_has_its_own_masks_and_torchs_mode(torch):
    module = torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = normal(4, 20, 8)
    layer = culux.transform(module, example=(x, x, x))
    ps, st = culux.setup(0, layer)
    (_, weights), new = layer((x, x, x, None, True, None, False), ps, st)
    assert abs((weights == 0).mean() - 0.5) < 0.05
    assert not np.array_equal(new.attention_dropout.rng.counter, st.attention_dropout.rng.counter)
    assert culux.initial_states(0, culux.transform(module.eval())).attention_dropout.training is False


TRANSFORMERS = [
    ("TransformerEncoderLayer", {}),
    ("TransformerEncoderLayer", {"norm_first": True, "activation": "gelu"}),
    ("TransformerEncoderLayer", {"batch_first": True, "layer_norm_eps": 1e-2}),
    ("TransformerEncoderLayer", {"batch_first": True, "norm_first": True, "activation": "SiLU"}),
    ("TransformerEncoderLayer", {"batch_first": True, "activation": "GELU"}),
    ("TransformerDecoderLayer", {}),
    ("TransformerDecoderLayer", {"norm_first": True, "batch_first": True, "activation": "gelu"}),
]


def transformer(torch, name, options):
    """A block of torch's, in float64; an activation that is a module's name is given as that module."""
    activation = options.get("activation", "relu")
    if activation == "GELU":
        activation = torch.nn.GELU(approximate="tanh")
    elif activation == "SiLU":
        activation = torch.nn.SiLU()
    return spread(torch, getattr(torch.nn, name)(6, 2, 10, 0.0, **{**options, "activation": activation}))


def transformer_inputs(module, masked):
    """Two sequences, of a decoder also those of its memory, with the masks of torch's call."""
    blocks = getattr(module, "layers", [module])
    x, memory = sequences(2, 3, 6), sequences(2, 5, 6)
    if not blocks[0].self_attn.batch_first:
        x, memory = x.swapaxes(0, 1).copy(), memory.swapaxes(0, 1).copy()
    causal, padding = np.triu(np.ones((3, 3), bool), 1), np.array([[False, False, True], [False, True, False]])
    if hasattr(blocks[0], "multihead_attn"):
        return (x, memory, causal, HIDDEN, padding, PADDING) if masked else (x, memory)
    return (x, causal, padding) if masked else x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("name", "options"), TRANSFORMERS)
def test_transformer_layers_compute_what_torch_computes(torch, name, options, masked, training):
    module = transformer(torch, name, options).train(training)
    same(torch, module, transformer_inputs(module, masked))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_transformers_compute_what_torch_computes(torch, kind, normed, masked, training):
    block = transformer(torch, f"Transformer{kind}Layer", {"batch_first": True, "norm_first": normed})
    norm = torch.nn.LayerNorm(6, eps=1e-2) if normed else None
    module = spread(torch, getattr(torch.nn, f"Transformer{kind}")(block, 2, norm=norm)).train(training)
    inputs = transformer_inputs(module, masked)
    layer, y = same(torch, module, inputs)
    assert torch.backends.mha.get_fastpath_enabled()
    shapes = (2, 3, 6) if kind == "Encoder" else ((2, 3, 6), (2, 5, 6))
    assert culux.output_shape(layer, shapes) == y.shape == (2, 3, 6)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_whole_transformer(torch, batch_first, masked):
    module = spread(torch, torch.nn.Transformer(6, 2, 1, 2, 10, 0.0, batch_first=batch_first))
    tgt, src = sequences(2, 3, 6), sequences(2, 5, 6)
    src, tgt = (src, tgt) if batch_first else (src.swapaxes(0, 1).copy(), tgt.swapaxes(0, 1).copy())
    causal, padding = np.triu(np.ones((3, 3), bool), 1), np.array([[False, False, True], [False, True, False]])
    src_mask = np.triu(np.ones((5, 5), bool), 3)
    masks = (src_mask, causal, HIDDEN, PADDING, padding, PADDING[::-1].copy()) if masked else ()
    layer, y = same(torch, module, (src, tgt, *masks))
    assert culux.output_shape(layer, (src.shape, tgt.shape)) == y.shape
    with pytest.raises(ShapeError, match=r"\(src, tgt\) up to memory_key_padding_mask, got a tuple of 9"):
        layer((src, tgt, *(None,) * 7), *culux.setup(0, layer))


def test_dropouts_of_a_transformer_have_torchs_mode(torch):
    block = torch.nn.TransformerEncoderLayer(6, 2, 10, dropout=0.3, batch_first=True)
    module = torch.nn.TransformerEncoder(block, 2)
    x = normal(2, 3, 6)
    layer = culux.transform(module, example=x)
    ps, st = culux.setup(0, layer)
    y, new = layer(x, ps, st)
    assert not np.allclose(y, layer(x, ps, culux.test_mode(st))[0])
    for path, leaf in culux.tree.leaves_with_path(st):
        if path.endswith("training"):
            assert leaf is True
    for name in ("dropout", "dropout1", "dropout2"):
        assert not np.array_equal(new.layers_2[name].rng.counter, st.layers_2[name].rng.counter)
    assert not np.array_equal(
        new.layers_1.self_attn.attention_dropout.rng.counter, st.layers_1.self_attn.attention_dropout.rng.counter
    )
    frozen = culux.initial_states(0, culux.transform(module.eval()))
    assert not any(leaf for path, leaf in culux.tree.leaves_with_path(frozen) if path.endswith("training"))


def test_parameters_of_transformers_go_back_to_torch(torch):
    module = torch.nn.Sequential(
        torch.nn.Embedding(9, 6),
        torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(6, 2, 10, batch_first=True), 2),
        torch.nn.Linear(6, 2),
    )
    layer = culux.transform(module, example=np.array([[1, 8, 3], [0, 0, 2]]))
    ps, st = culux.setup(0, layer)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    interop.copy_to_torch(layer, culux.tree.map(lambda leaf: leaf + 1, ps), st)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name] + 1), name
    kinds = [line.split()[-2:] for line in interop.report(module).splitlines()[2:]]
    assert kinds == [["Embedding", "culux"], ["TransformerStack", "culux"], ["Dense", "culux"]]


def staying(torch):
    """Modules without a counterpart, each with the reason and the inputs of a call."""
    nn, x = torch.nn, normal(2, 3, 4)
    yield nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv=True has no counterpart", (x, x, x)
    yield nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn=True has no counterpart", (x, x, x)
    hooked = nn.MultiheadAttention(4, 2)
    hooked.out_proj.register_forward_hook(lambda module, args, y: 2 * y)
    yield hooked, "it has hooks", (x, x, x)
    half = nn.MultiheadAttention(4, 2)
    half.out_proj.bias = None
    yield half, "a bias of some projections only has no counterpart", (x, x, x)

    normed = nn.MultiheadAttention(4, 2)
    nn.utils.parametrizations.weight_norm(normed.out_proj)
    reason = "a ParametrizedNonDynamicallyQuantizableLinear as out_proj has no counterpart"
    yield normed, reason, (x, x, x)

    def block(**options):
        return nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, **options)

    yield block(activation=torch.tanh), "activation='tanh' has no counterpart", x
    yield block(activation=nn.PReLU()), "activation: no counterpart", x
    yield block(bias=False), "norm1: a scale without a bias has no counterpart", x
    doubled = block()
    doubled.linear2.register_forward_hook(lambda module, args, y: 2 * y)
    yield doubled, "linear2: it has hooks", x
    tied = nn.TransformerEncoder(block(), 2)
    tied.layers[1] = tied.layers[0]
    yield tied, "its children share parameters", x
    deep = nn.TransformerEncoder(block(), 2)
    deep.layers[1].self_attn.add_zero_attn = True
    yield deep, "layers.1: self_attn: add_zero_attn=True has no counterpart", x
    own = nn.Transformer(4, 2, 1, 1, 8, 0.0, activation=torch.tanh)
    yield own, "encoder: layers.0: activation='tanh' has no counterpart", (x, x)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_what_has_no_counterpart_stays_with_torch(torch):
    for module, reason, inputs in staying(torch):
        layer = culux.transform(module)
        assert type(layer) is interop.TorchLayer
        assert f"torch: {reason}" in interop.report(module)
        y, _ = layer(inputs, *culux.setup(0, layer))
        expected = module(*(torch.from_numpy(x) for x in (inputs if isinstance(inputs, tuple) else (inputs,))))
        for part, wanted in zip(culux.tree.leaves(y), culux.tree.leaves(expected), strict=True):
            close(part, wanted.detach().numpy())


def test_inputs_that_do_not_fit(torch):
    nn, x = torch.nn, normal(2, 3, 4)
    causal = np.triu(np.ones((3, 3), bool), 1)
    attention, elsewhere = nn.MultiheadAttention(4, 2, batch_first=True), r"; culux.interop.TorchLayer\(module\) takes"
    form = r"expected a tuple of torch's arguments, \(q, k, v\) up to average_attn_weights, got "
    encoder, decoder = nn.TransformerEncoderLayer(4, 2, 8), nn.TransformerDecoderLayer(4, 2, 8)
    four = x[None]
    for module, inputs, message in [
        (attention, x, form + "one input" + elsewhere),
        (attention, (x, x), form + "a tuple of 2" + elsewhere),
        (attention, (x, x, x, None, True, causal, True, True), form + "a tuple of 8" + elsewhere),
        (attention, (four, four, four), r"expected q, k and v to have 2 or 3 axes, got the shape \(1, 2, 3, 4\)"),
        (attention, (x, x, x, None, True, np.stack([causal] * 3)),
         r"expected attn_mask of shape \(3, 3\) or \(4, 3, 3\), for every head of every sequence, got \(3, 3, 3\)"),
        (attention, (x, x, x, np.ones((2, 2), bool)), r"expected mask of a shape that broadcasts to"),
        (encoder, (x, None, None, True), r"expected x, \(x, mask\) or \(x, mask, key_padding_mask\), got a tuple of 4"),
        (decoder, x, r"\(tgt, memory\) up to memory_key_padding_mask, got one input" + elsewhere),
        (encoder, normal(2, 3, 5),
         r"in self_attn \(AttentionFromTorch\(MultiheadAttention\(4, 2\)\)\): expected q of .*, 4\), got \(3, 2, 5\)"),
    ]:  # fmt: skip
        layer = culux.transform(module)
        with pytest.raises(ShapeError, match=message):
            layer(inputs, *culux.setup(0, layer))
