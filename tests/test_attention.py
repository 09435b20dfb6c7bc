"""Attention beside the catalogue: rows without a key, precision, dropout, shapes, initial values, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

import culux
from culux import MultiHeadAttention, init, nn
from culux.errors import DeviceError, DifferentiationError, DTypeError, LayerError, ShapeError
from culux.nn import scaled_dot_product_attention
from culux.testing import cost
from culux.training import TrainState, single_train_step
from tests.arrays import normal
from tests.catalogue.attention import HIDDEN, attention
from tests.layers_support import ran
from tests.support import requires

Q, K, V = normal(2, 4, 5, 3), normal(2, 2, 7, 3, seed=1), normal(2, 2, 7, 6, seed=2)
X = normal(2, 5, 4, dtype=np.float32)

# The function


@pytest.mark.parametrize(
    "mask", [HIDDEN, np.where(HIDDEN, 0.5, -np.inf), HIDDEN[None, None, :, :1]], ids=["bool", "float", "broadcast"]
)
def test_a_query_without_a_key_gives_zeros_and_no_gradient(mask):
    y, weights = scaled_dot_product_attention(Q, K, V, mask=mask, return_weights=True)
    np.testing.assert_array_equal(y[:, :, 2], 0)
    np.testing.assert_array_equal(weights[:, :, 2], 0)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(weights[:, :, others].sum(-1), 1, rtol=1e-12)
    slopes = culux.gradient(lambda *a: (scaled_dot_product_attention(*a, mask=mask) ** 2).sum(), Q, K, V)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_array_equal(slopes[0][:, :, 2], 0)
    assert (slopes[0][:, :, others] != 0).all()


def test_a_mask_and_causal_hide_what_either_hides():
    mask = np.arange(7) > 0  # with causal the first query has no key
    y = scaled_dot_product_attention(Q, K, V, mask=mask, causal=True)
    both = mask & np.tri(5, 7, dtype=bool)
    np.testing.assert_array_equal(y, scaled_dot_product_attention(Q, K, V, mask=both))
    np.testing.assert_array_equal(y[:, :, 0], 0)
    np.testing.assert_allclose(y[:, :, 1], np.repeat(V[:, :, 1], 2, axis=1), rtol=1e-12)


def test_no_keys_at_all_give_zeros():
    y, weights = scaled_dot_product_attention(Q, K[:, :, :0], V[:, :, :0], return_weights=True)
    np.testing.assert_array_equal(y, np.zeros((2, 4, 5, 6)))
    assert weights.shape == (2, 4, 5, 0)


def test_the_scale_is_a_factor_and_changes_no_dtype():
    q, k, v = (x.astype(np.float32) for x in (Q, K, V))
    y = scaled_dot_product_attention(q, k, v, scale=np.float64(0.25))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, attention(Q, K, V, scale=0.25)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(DifferentiationError, match="a traced array cannot become a Python number"):
        culux.gradient(lambda scale: scaled_dot_product_attention(Q, K, V, scale=scale).sum(), 0.25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    kind = requires("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    q, k, v = (30 * x for x in (normal(1, 1, 4, 512), normal(1, 1, 600, 512, seed=1), normal(1, 1, 600, 2, seed=2)))
    q, k, v = (x.astype(kind) for x in (q, k, v))  # products of 30 * 30 * 512 are more than float16 has
    y, weights = scaled_dot_product_attention(q, k, v, scale=1e-4, return_weights=True)
    assert (y.dtype, weights.dtype) == (kind, kind)
    exact = attention(*(x.astype(np.float64) for x in (q, k, v)), scale=1e-4)
    np.testing.assert_allclose(y.astype(np.float64), exact[0], rtol=5e-3, atol=1e-2)
    wide = scaled_dot_product_attention(*(x.astype(np.float32) for x in (q, k, v)), scale=1e-4, return_weights=True)
    np.testing.assert_array_equal(y, wide[0].astype(kind))
    np.testing.assert_array_equal(weights, wide[1].astype(kind))


def test_a_float_mask_is_added_to_the_bias():
    mask, bias = normal(2, 1, 5, 7, seed=3), normal(4, 1, 7, seed=4)
    mask[0, 0, 1, :3] = -np.inf
    y = scaled_dot_product_attention(Q, K, V, mask=mask, bias=bias)
    np.testing.assert_allclose(y, attention(Q, K, V, bias=mask + bias)[0], rtol=1e-10)


def test_large_scores_do_not_overflow():
    y = scaled_dot_product_attention(np.full((1, 2, 3), 1e3), np.full((1, 2, 3), 1e3), V[0, :1, :2])
    np.testing.assert_allclose(y, np.broadcast_to(V[0, :1, :2].mean(1, keepdims=True), (1, 2, 6)), rtol=1e-12)


def test_the_third_derivative():
    def along(t, order):
        if order == 0:
            return (scaled_dot_product_attention(Q * t, K, V, causal=True) ** 2).sum()
        return culux.gradient(lambda t: along(t, order - 1), t)

    for order in (1, 2, 3):
        slope = (along(1 + 1e-4, order - 1) - along(1 - 1e-4, order - 1)) / 2e-4
        np.testing.assert_allclose(along(1.0, order), slope, rtol=1e-6)


def test_the_derivative_of_a_derivative_in_its_cotangent():
    c = normal(2, 4, 5, 6, seed=5)

    def slope(c):
        return culux.gradient(lambda k: (scaled_dot_product_attention(Q, k, V) * c).sum(), K)

    def total(c):
        return (slope(c) ** 2).sum()

    direction = normal(*c.shape, seed=6)
    difference = (total(c + 1e-5 * direction) - total(c - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose((culux.gradient(total, c) * direction).sum(), difference, rtol=1e-7)


def test_arguments_are_left_as_they_are():
    given = [Q.copy(), K.copy(), V.copy(), normal(5, 7), HIDDEN.copy()]
    before = [x.copy() for x in given]
    q, k, v, bias, mask = given
    y, pullback = culux.vjp(lambda *a: scaled_dot_product_attention(*a[:3], bias=a[3], mask=mask), q, k, v, bias)
    first = pullback(y)
    for one, again in zip(first, pullback(y), strict=True):
        np.testing.assert_array_equal(one, again)
    for x, was in zip(given, before, strict=True):
        np.testing.assert_array_equal(x, was)


SHAPES = "expected q of shape (..., heads, length, head_dims), k of shape (..., kv_heads, kv_length, head_dims) and v"


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        ([(2, 4, 5, 3), (2, 3, 7, 3), (2, 3, 7, 6)], {}, ShapeError, SHAPES),
        ([(2, 4, 5, 3), (2, 4, 7, 2), (2, 4, 7, 6)], {}, ShapeError, "got (2, 4, 5, 3), (2, 4, 7, 2) and (2, 4, 7, 6)"),
        ([(2, 4, 5, 3), (2, 4, 7, 3), (2, 4, 6, 6)], {}, ShapeError, SHAPES),
        ([(2, 4, 5, 3), (2, 2, 7, 3), (2, 4, 7, 6)], {}, ShapeError, SHAPES),
        ([(2, 4, 5, 3), (1, 4, 7, 3), (1, 4, 7, 6)], {}, ShapeError, SHAPES),
        ([(2, 4, 5, 3), (2, 0, 7, 3), (2, 0, 7, 6)], {}, ShapeError, SHAPES),
        ([(4, 5, 3), (2, 4, 7, 3), (2, 4, 7, 6)], {}, ShapeError, SHAPES),
        ([(3,), (3,), (3,)], {}, ShapeError, SHAPES),
        (None, {"mask": np.ones((2, 7), bool)}, ShapeError,
         "expected mask of a shape that broadcasts to (..., heads, length, kv_length) = (2, 4, 5, 7), got (2, 7); one "
         "for each key of a sequence, (batch, kv_length), is mask[:, None, None, :]"),
        (None, {"mask": np.ones((1, 2, 4, 5, 7), bool)}, ShapeError, "expected mask of a shape that broadcasts to"),
        (None, {"bias": np.ones((3, 5, 7))}, ShapeError, "expected bias of a shape that broadcasts to (..., heads"),
        (None, {"bias": np.ones((5, 7), int)}, DTypeError,
         "scaled_dot_product_attention: expected bias to be a float array, got int64 array of shape (5, 7)"),
        (None, {"mask": np.ones((5, 7), int)}, DTypeError,
         "expected mask to be a bool array, True where a query may attend to a key, or a float array that is added, "
         "got int64 array of shape (5, 7); mask.astype(bool)"),
        (None, {"mask": [[True] * 7] * 5}, DTypeError, "or a float array that is added, got list [["),
    ],
)  # fmt: skip
def test_what_the_function_refuses(shapes, options, error, message):
    arrays = (Q, K, V) if shapes is None else [np.ones(shape) for shape in shapes]
    with pytest.raises(error, match=re.escape(message)):
        scaled_dot_product_attention(*arrays, **options)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_the_function_takes_floats(name):
    arrays = [x.astype(int) if name == here else x for here, x in zip("qkv", (Q, K, V), strict=True)]
    message = f"scaled_dot_product_attention: expected {name} to be a float array, got int64"
    with pytest.raises(DTypeError, match=message):
        scaled_dot_product_attention(*arrays)


def test_a_mask_of_another_device(standin_cupy):
    arrays = [standin_cupy.asarray(x) for x in (Q, K, V)]
    with pytest.raises(DeviceError, match=r"expected all arrays on one device, got: .* is on cuda:0 .*, .* is on cpu"):
        scaled_dot_product_attention(*arrays, mask=HIDDEN)
    y = scaled_dot_product_attention(*arrays, mask=standin_cupy.asarray(HIDDEN), causal=True)
    np.testing.assert_allclose(culux.to_numpy(y), scaled_dot_product_attention(Q, K, V, mask=HIDDEN, causal=True))


def test_keys_and_values_of_several_heads_are_not_copied():
    q, k, v = normal(2, 8, 5, 3), normal(2, 2, 7, 3), normal(2, 2, 7, 6)
    counted = cost(lambda: culux.gradient(lambda *a: scaled_dot_product_attention(*a).sum(), q, k, v))
    weights = 2 * 8 * 5 * 7 * 8
    assert counted.saved_bytes == weights + q.nbytes + k.nbytes + v.nbytes


def test_nothing_moves_between_host_and_gpu(standin_cupy):
    arrays = [standin_cupy.asarray(x.astype(np.float32)) for x in (Q, K, V)]
    mask = standin_cupy.asarray(HIDDEN)

    def total(*arrays):
        return scaled_dot_product_attention(*arrays, mask=mask, causal=True).sum()

    counted = cost(lambda: culux.gradient(total, *arrays))
    assert counted.transfers == ()
    softmaxes = {name: count for name, count in counted.kernels if name.startswith("softmax")}
    assert list(softmaxes.values()) == [1, 1]  # one each way


# The layer


def test_torchs_initial_values():
    torch = requires("torch")
    for theirs in ({}, {"kdim": 32, "vdim": 16}, {"kdim": 32}, {"vdim": 16}):
        fields = {{"kdim": "key_dims", "vdim": "value_dims"}[name]: length for name, length in theirs.items()}
        module = torch.nn.MultiheadAttention(64, 4, **theirs)
        ps, _ = culux.setup(0, MultiHeadAttention(64, num_heads=4, **fields))
        stacked = {} if theirs else dict(zip(("q", "k", "v"), module.in_proj_weight.chunk(3), strict=True))
        for name in ("q", "k", "v"):
            expected = stacked[name] if stacked else getattr(module, f"{name}_proj_weight")
            found = ps[f"{name}_proj"].weight
            assert found.shape == tuple(expected.shape)
            assert np.abs(found).max() == pytest.approx(float(expected.detach().abs().max()), rel=0.02)
            assert not ps[f"{name}_proj"].bias.any()
        assert 0.98 / 8 < np.abs(ps.out_proj.weight).max() <= 1 / 8
        assert not ps.out_proj.bias.any()


def test_the_children_and_their_options():
    layer = MultiHeadAttention(4, num_heads=2, init_weight=init.ones, init_bias=init.constant(2.0), dropout=0.1)
    ps, st = culux.setup(0, layer)
    assert list(ps) == ["q_proj", "k_proj", "v_proj", "attention_dropout", "out_proj"]
    assert list(layer.children()) == list(ps) == list(st)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert (ps[name].weight == 1).all()
        assert (ps[name].bias == 2).all()
    assert not culux.tree.leaves(culux.setup(0, MultiHeadAttention(4))[1])
    culux.stateless_apply(MultiHeadAttention(4), X, culux.setup(0, MultiHeadAttention(4))[0])
    assert "bias" not in culux.setup(0, MultiHeadAttention(4, use_bias=False))[0].out_proj
    assert repr(MultiHeadAttention(4, num_heads=2, causal=True)) == "MultiHeadAttention(4, num_heads=2, causal=True)"


def test_dropout_moves_on_in_training_only():
    layer = MultiHeadAttention(4, num_heads=2, dropout=0.5, return_weights=True)
    (y, weights), ps, st = ran(layer, X)
    assert set(np.unique((weights == 0).mean(axis=(0, 1, 2)) > 0)) == {True}
    (again, _), after = layer(X, ps, st)
    np.testing.assert_array_equal(y, again)
    (other, _), _ = layer(X, ps, after)
    assert (other != y).any()
    assert after.attention_dropout.rng.counter[0] == -(-2 * 2 * 5 * 5 // 8)
    (plain, whole), same = layer(X, ps, culux.test_mode(st))
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights, np.where(weights == 0, 0, 2 * whole), rtol=1e-5)
    np.testing.assert_array_equal(same.attention_dropout.rng.counter, st.attention_dropout.rng.counter)
    np.testing.assert_array_equal(plain, ran(MultiHeadAttention(4, num_heads=2), X)[0])


def test_the_forms_of_the_inputs():
    layer = MultiHeadAttention(4, num_heads=2)
    y, ps, st = ran(layer, X)
    for form in ((X, X), (X, X, X), (X, X, X, None), (X, X, X, np.ones(5, bool))):
        np.testing.assert_array_equal(layer(form, ps, st)[0], y)
    np.testing.assert_allclose(layer(X[0], ps, st)[0], y[0], rtol=1e-4, atol=1e-6)  # no batch
    np.testing.assert_allclose(layer(X[None], ps, st)[0], y[None], rtol=1e-5, atol=1e-6)
    padded = np.array([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]
    found, _ = layer((X, X, X, padded), ps, st)
    np.testing.assert_allclose(found[0], y[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, :3], layer(X[1:, :3], ps, st)[0][0], rtol=1e-4, atol=1e-6)


def test_output_shapes():
    layer = MultiHeadAttention(4, num_heads=2, key_dims=3, value_dims=6, out_dims=7, return_weights=True)
    shapes = ((2, 5, 4), (2, 8, 3), (2, 8, 6))
    expected = ((2, 5, 7), (2, 2, 5, 8))
    assert culux.output_shape(layer, shapes) == expected
    assert culux.output_shape(layer, (*shapes, None)) == expected
    assert culux.output_shape(layer, (*shapes, (2, 1, 1, 8))) == expected
    layer = MultiHeadAttention(4)
    assert culux.output_shape(layer, (2, 5, 4)) == (2, 5, 4)
    assert culux.output_shape(layer, ((2, 5, 4), (2, 8, 4))) == (2, 5, 4)


FORMS = "; the inputs are x, (q, kv), (q, k, v) or (q, k, v, mask)"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((2, 5, 3), f"expected q of shape (batch, length, 4), got (2, 5, 3){FORMS}"),
        ((4,), "expected q of shape (batch, length, 4), got (4,)"),
        (((2, 5, 4), (2, 5, 3)), f"expected k of shape (batch, length, 4), got (2, 5, 3){FORMS}"),
        (((2, 5, 4), (2, 5, 4), (2, 5, 3)), "expected v of shape (batch, length, 4), got (2, 5, 3)"),
        (((2, 5, 4), (3, 5, 4)), "expected q, k and v of one batch, and k and v of one length, got the shapes "
         f"(2, 5, 4), (3, 5, 4) and (3, 5, 4){FORMS}"),
        (((2, 5, 4), (2, 5, 4), (2, 6, 4)), "expected q, k and v of one batch, and k and v of one length"),
        (((2, 5, 4),) * 3 + ((2, 5, 5),), "expected mask of a shape that broadcasts to (..., heads, length, kv_length) "
         "= (2, 3, 5, 5), got (2, 5, 5)"),
        (((2, 5, 4),), "expected x or a tuple of 2 to 4 inputs, got a tuple of 1; the inputs are x, (q, kv)"),
        (((2, 5, 4),) * 5, "expected x or a tuple of 2 to 4 inputs, got a tuple of 5; the inputs are x, (q, kv)"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_told_alike_by_the_call_and_by_output_shape(shapes, message):
    layer = MultiHeadAttention(4, num_heads=3, head_dims=2)
    located = re.escape(f"in MultiHeadAttention(4, num_heads=3, head_dims=2): {message}")
    ps, st = culux.setup(0, layer)
    tupled = isinstance(shapes[0], tuple)
    arrays = tuple(np.ones(shape, bool if i == 3 else np.float32) for i, shape in enumerate(shapes)) if tupled else None
    with pytest.raises(ShapeError, match=located):
        layer(arrays if tupled else np.ones(shapes, np.float32), ps, st)
    with pytest.raises(ShapeError, match=located):
        culux.output_shape(layer, shapes)


def test_what_is_no_array_is_refused():
    layer = MultiHeadAttention(4)
    ps, st = culux.setup(0, layer)
    with pytest.raises(LayerError, match="expected x to be an array, got None"):
        layer((X, None), ps, st)
    with pytest.raises(ShapeError, match=r"in q_proj \(Dense\(4, 4\)\): expected ps.weight of shape \(4, 4\)"):
        layer(X, culux.setup(0, MultiHeadAttention(4, head_dims=3))[0], st)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(0), "MultiHeadAttention: expected dims to be a positive int, got int 0"),
        (lambda: MultiHeadAttention(4, num_heads=0), "expected num_heads to be a positive int, got int 0"),
        (lambda: MultiHeadAttention(4, num_heads=3), "expected dims to be a multiple of num_heads, got 4 and 3; "
         "head_dims= gives the heads another length"),
        (lambda: MultiHeadAttention(4, num_heads=4, num_kv_heads=3),
         "expected num_heads to be a multiple of num_kv_heads, got 4 and 3"),
        *[(lambda name=name: MultiHeadAttention(4, **{name: 0}), f"expected {name} to be a positive int, got int 0")
          for name in ("num_kv_heads", "head_dims", "value_head_dims", "key_dims", "value_dims", "out_dims")],
        *[(lambda name=name: MultiHeadAttention(4, **{name: 1}), f"expected {name} to be a bool, got int 1")
          for name in ("use_bias", "causal", "return_weights")],
        (lambda: MultiHeadAttention(4, dropout=2), "expected dropout to be a number between 0 and 1, got int 2"),
        (lambda: MultiHeadAttention(4, init_weight="x"), "expected init_weight to be a function (rng, shape) -> array"),
        (lambda: MultiHeadAttention(4, init_bias=0), "expected init_bias to be a function (rng, shape) -> array"),
        (lambda: MultiHeadAttention(embed_dim=4), "takes no embed_dim=; culux calls it dims, the first argument: Mult"),
        (lambda: MultiHeadAttention(4, nheads=2), "MultiHeadAttention takes no nheads=; culux calls it num_heads"),
        (lambda: MultiHeadAttention(4, nhead=2), "takes no nhead=; culux calls it num_heads"),
        (lambda: MultiHeadAttention(4, kdim=2), "takes no kdim=; culux calls it key_dims"),
        (lambda: MultiHeadAttention(4, vdim=2), "takes no vdim=; culux calls it value_dims"),
        (lambda: MultiHeadAttention(4, is_causal=True), "takes no is_causal=; culux calls it causal"),
        (lambda: MultiHeadAttention(4, attention_dropout_probability=0.1),
         "takes no attention_dropout_probability=; culux calls it dropout"),
        (lambda: MultiHeadAttention(4, need_weights=True),
         "takes no need_weights=; culux calls it return_weights (True or False)"),
        (lambda: MultiHeadAttention(4, bias=False), "takes no bias=; culux calls it use_bias (True or False)"),
    ],
)  # fmt: skip
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()


def test_a_model_finds_the_marked_step():
    model = MultiHeadAttention(4, num_heads=2, dropout=0.05, out_dims=2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 4)).astype(np.float32)
    x[..., 0] = np.arange(6) == rng.integers(0, 6, (64, 1))
    wanted = (x[..., :1] * x[..., 1:3]).sum(1, keepdims=True) * np.ones((1, 6, 1), np.float32)

    def objective(layer, ps, st, batch):
        y, st = layer(batch[0], ps, st)
        return nn.relu((y - batch[1]) ** 2).mean(), st, {}

    state = TrainState.create(0, model, culux.optim.Adam(0.02))
    losses = []
    for _ in range(150):
        loss, _, state = single_train_step(objective, (x, wanted), state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 4


def test_the_same_dropout_on_every_device(standin_cupy):
    layer = MultiHeadAttention(4, num_heads=2, num_kv_heads=1, dropout=0.4, causal=True)
    y, ps, st = ran(layer, X)
    device = culux.gpu_device()
    found, after = layer(device(X), device(ps), device(st))
    np.testing.assert_allclose(culux.to_numpy(found), y, rtol=1e-5, atol=1e-6)
    assert culux.to_numpy(after.attention_dropout.rng.counter)[0] == 2 * 2 * 25 // 8 + 1
