"""Embedding: `nn.embedding` and the layer, on the host."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import Embedding, init, nn
from culux.errors import DeviceError, DTypeError, LayerError, ShapeError
from tests.support import requires

IDS = np.array([[3, 0, 3], [1, 3, 6]])


def weight_of(dtype=np.float32, rows=7, dims=5):
    return np.random.default_rng(0).standard_normal((rows, dims)).astype(dtype)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1, 2)])
def test_every_integer_and_shape_of_ids(kind, shape):
    ids, weight = np.resize(IDS, shape).astype(kind), weight_of()
    y = nn.embedding(ids, weight)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, weight[ids])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_sums_over_the_places_of_an_id(dtype):
    torch = pytest.importorskip("torch")
    weight, dy = weight_of(dtype), np.random.default_rng(1).standard_normal((2, 3, 5)).astype(dtype)
    _, pullback = culux.vjp(lambda w: nn.embedding(IDS, w), weight)
    theirs = torch.tensor(weight, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor(IDS), theirs).backward(torch.tensor(dy))
    (found,) = pullback(dy)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[[2, 4, 5]], 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_of_half_precision_is_summed_in_float32(dtype):
    if dtype == "bfloat16":
        requires("ml_dtypes")
    ids, weight = np.zeros(4096, np.int64), weight_of().astype(dtype)
    (found,) = culux.vjp(lambda w: nn.embedding(ids, w), weight)[1](np.ones((4096, 5), weight.dtype))
    assert found.dtype == weight.dtype
    np.testing.assert_array_equal(found[0].astype(np.float32), 4096)


def test_a_second_derivative():
    weight = weight_of(np.float64)

    def cubed(w):
        return (nn.embedding(IDS, w) ** 3).sum()

    found = culux.gradient(lambda w: (culux.gradient(cubed, w) ** 2).sum(), weight)
    counts = np.bincount(IDS.ravel(), minlength=7)[:, None]
    np.testing.assert_allclose(found, 36 * counts**2 * weight**3, rtol=1e-12)


def test_no_ids_and_empty_rows():
    assert nn.embedding(np.zeros((0, 3), np.int64), weight_of()).shape == (0, 3, 5)
    (found,) = culux.vjp(lambda w: nn.embedding(np.zeros(0, np.int32), w), weight_of())[1](np.zeros((0, 5), "float32"))
    np.testing.assert_array_equal(found, np.zeros((7, 5)))
    assert nn.embedding(IDS, weight_of(dims=0)).shape == (2, 3, 0)


def test_another_library(strict):
    import array_api_strict as xp

    weight = weight_of(np.float64)
    y, pullback = culux.vjp(lambda w: nn.embedding(xp.asarray(IDS), w), xp.asarray(weight))
    np.testing.assert_array_equal(np.from_dlpack(y), weight[IDS])
    (found,) = pullback(y)
    expected = np.bincount(IDS.ravel(), minlength=7)[:, None] * weight
    np.testing.assert_allclose(np.from_dlpack(found), expected, rtol=1e-12)


def test_ids_that_no_row_has():
    with pytest.raises(
        ShapeError,
        match=r"embedding: expected ids from 0 to 6 for the 7 rows of weight, got 7 at ids\[1, 2\]; negative ids",
    ):
        nn.embedding(np.array([[0, 1, 2], [3, 4, 7]]), weight_of())
    with pytest.raises(ShapeError, match=r"got -1 at ids\[2\]"):
        nn.embedding(np.array([0, 6, -1, 9]), weight_of())
    with pytest.raises(ShapeError, match=r"got 18446744073709551615 at ids\[0\]"):
        nn.embedding(np.array([2**64 - 1], np.uint64), weight_of())


def test_refusals():
    with pytest.raises(
        DTypeError, match=r"expected an array of integer ids, got float32 array .*ids.astype\('int64'\)"
    ):
        nn.embedding(np.ones(3, np.float32), weight_of())
    for ids in ([1, 2], 3, np.array([True])):
        with pytest.raises(DTypeError, match="expected an array of integer ids, got"):
            nn.embedding(ids, weight_of())
    with pytest.raises(DTypeError, match="embedding: expected weight to be a float array, got int64 array"):
        nn.embedding(IDS, np.ones((7, 5), np.int64))
    with pytest.raises(ShapeError, match=r"expected weight of shape \(rows, dims\), got \(7,\)"):
        nn.embedding(IDS, np.ones(7))
    with pytest.raises(DTypeError, match="expected an array of integer ids, got"):
        culux.gradient(lambda x: nn.embedding(x, weight_of()).sum(), np.ones(3))


def test_ids_of_another_device(standin_cupy):
    with pytest.raises(DeviceError, match="expected all arrays on one device"):
        nn.embedding(IDS, standin_cupy.asarray(weight_of()))


def test_the_layer():
    layer = Embedding(1000, 64)
    ps, st = culux.setup(0, layer)
    assert ps.weight.shape == (1000, 64)
    assert ps.weight.dtype == np.float32
    assert abs(ps.weight.mean()) < 0.01
    assert abs(ps.weight.std() - 1) < 0.01
    y, after = layer(IDS, ps, st)
    np.testing.assert_array_equal(y, ps.weight[IDS])
    assert after == st
    assert culux.output_shape(layer, (2, 3)) == y.shape
    assert repr(Embedding(3, 2, init_weight=init.zeros)) == "Embedding(3, 2, init_weight=zeros)"
    assert not culux.setup(0, Embedding(3, 2, init_weight=init.zeros))[0].weight.any()
    assert culux.parameter_length(layer) == 64000


def test_a_model_with_an_embedding_learns():
    model = culux.Chain(Embedding(7, 4), culux.Dense(4, 3))
    ps, st = culux.setup(0, model)
    labels = IDS % 3

    def loss(ps):
        y, _ = model(IDS.ravel(), ps, st)
        return culux.losses.cross_entropy(y, labels.ravel())

    opt = culux.optim.setup(culux.optim.Adam(0.1), ps)
    before = loss(ps)
    for _ in range(20):
        opt, ps = culux.optim.update(opt, ps, culux.gradient(loss, ps))
    assert loss(ps) < 0.2 * before


def test_refusals_of_the_layer():
    with pytest.raises(LayerError, match="expected num_embeddings to be a positive int or a tuple of them, got int 0"):
        Embedding(0, 3)
    with pytest.raises(LayerError, match="Embedding: expected dims to be a positive int"):
        Embedding(3, 2.5)
    with pytest.raises(LayerError, match="Embedding: expected init_weight to be a function"):
        Embedding(3, 2, init_weight="zeros")
    layer = Embedding(7, 5)
    ps, st = culux.setup(0, layer)
    with pytest.raises(ShapeError, match=r"in Embedding\(7, 5\): embedding: expected ids from 0 to 6"):
        layer(np.array([7]), ps, st)
    with pytest.raises(ShapeError, match=r"expected ps.weight of shape \(7, 5\), got float32 array of shape \(7, 6\)"):
        layer(IDS, culux.setup(0, Embedding(7, 6))[0], st)
