from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, losses, nn
from culux.errors import DeviceError
from culux.kernels import rows as launches
from tests.kernel_support import DTYPES, check, close, dtype_of

NONE = -100


def normal(*shape, seed=0, dtype="float32"):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype_of(dtype))


def labels_for(x, dtype=np.int64, seed=5):
    shape = (x.shape[0], *x.shape[2:])
    return np.random.default_rng(seed).integers(0, x.shape[1], shape).astype(dtype)


def formula(x, labels, smoothing=0.0, ignored=None):
    """Losses and the derivatives of each in float64."""
    x = np.moveaxis(x.astype(np.float64), 1, -1)
    shifted = x - x.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    kept = np.ones(labels.shape) if ignored is None else (labels != ignored) * 1.0
    target = np.eye(x.shape[-1])[np.where(kept > 0, labels, 0)] * (1 - smoothing) + smoothing / x.shape[-1]
    return -(target * log_p).sum(-1) * kept, np.moveaxis((np.exp(log_p) - target) * kept[..., None], -1, 1), kept.sum()


def kernel(name, dtype="float32", label_bytes=8):
    return kernels.get_kernel("cross_entropy", name, dtype_of(dtype), constants=(("LABEL_BYTES", label_bytes),))


@pytest.mark.parametrize("shape", [(3, 37), (2, 7, 19)])
def test_the_kernels_pass_every_check(shape):
    x, smoothing = normal(*shape), 0.1
    labels, count = labels_for(x), shape[0] * int(np.prod(shape[2:]))
    labels.flat[1] = NONE
    loss, slope, _ = formula(x, labels, smoothing, NONE)
    wide = np.moveaxis(x.astype(np.float64), 1, -1)
    top = wide.max(-1)
    log_sum = np.log(np.exp(wide - top[..., None]).sum(-1))
    one = np.empty(labels.shape, np.float32)
    inner = int(np.prod(shape[2:]))
    block, name = ((32, 3), "columns") if inner > 1 else ((64,), "rows")
    groups = [32, 64] if inner == 1 else [inner]
    for group in groups:
        grid = (2,)
        parts = np.zeros((2, 2))
        at = np.arange(count)
        owner = at // 32 if inner > 1 else at // (64 // group) % 2
        for block_index in range(2):
            parts[0, block_index] = loss.reshape(-1)[owner == block_index].sum()
            parts[1, block_index] = (labels.reshape(-1)[owner == block_index] != NONE).sum()
        check(
            kernel(f"cross_entropy_{name}"), grid, block, x, labels, one, one.copy(), one.copy(),
            np.empty((2, 2), np.float32), count, shape[1], group, smoothing, NONE, True,
            reference=lambda *_, parts=parts: (loss, top, log_sum, parts),
        )  # fmt: skip
        dy = normal(*labels.shape, seed=2)
        check(
            kernel(f"cross_entropy_backward_{name}"), grid, block, dy, None, x, labels, top.astype(np.float32),
            log_sum.astype(np.float32), np.empty_like(x), count, shape[1], group, smoothing, NONE, True,
            reference=lambda *_, dy=dy: slope * np.expand_dims(dy, 1),
        )  # fmt: skip


def test_the_last_sum_passes_every_check():
    partials = np.abs(normal(2, 70))
    total = partials.astype(np.float64).sum(1)
    check(
        kernel("cross_entropy_reduce"), (1,), (64,), partials, np.empty((), np.float32), np.empty((), np.float32), 70,
        True, reference=lambda *_: (total[0] / total[1], total[1]),
    )  # fmt: skip


def run(cupy, x, labels, *, reduction="mean", smoothing=0.0, ignored=None, dtype="float32"):
    device_x, device_labels = cupy.asarray(x), cupy.asarray(labels)
    options = {"label_smoothing": smoothing, "ignore_index": ignored, "reduction": reduction}
    cupy.machine.launches = cupy.machine.library_calls = 0
    y, pullback = culux.vjp(lambda x: losses.cross_entropy(x, device_labels, **options), device_x)
    assert cupy.machine.launches == (1 if reduction == "none" else 2)
    assert cupy.machine.library_calls == 0
    dy = normal(*y.shape, seed=3, dtype=dtype)
    device_dy = cupy.asarray(dy)
    cupy.machine.launches = 0
    (dx,) = pullback(device_dy)
    assert (cupy.machine.launches, cupy.machine.library_calls) == (1, 0)
    loss, slope, count = formula(x, labels, smoothing, ignored)
    divisor = count if reduction == "mean" else 1
    close(y, loss if reduction == "none" else loss.sum() / divisor, dtype, scale=max(1, np.abs(loss).max()))
    factor = np.expand_dims(dy, 1) if reduction == "none" else dy
    expected = slope * factor.astype(np.float64) / divisor
    close(dx, expected, dtype, scale=10 * max(1, np.abs(expected).max()))
    again, back = culux.vjp(lambda x: losses.cross_entropy(x, device_labels, **options), device_x)
    assert (again.get() == y.get()).all()
    assert (back(device_dy)[0].get() == dx.get()).all()


SHAPES = [(1, 1), (5, 10), (9, 64), (3, 1024), (2, 1031), (3, 2052), (2, 3, 33), (3, 90, 5), (2, 4, 3, 5), (2, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape, standin_cupy):
    x = normal(*shape) - 20  # zeros behind the end of a row would show
    run(standin_cupy, x, labels_for(x), smoothing=0.1)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(7, 10), (2, 5, 6)])
def test_every_reduction(reduction, shape, standin_cupy):
    x = normal(*shape)
    labels = labels_for(x)
    run(standin_cupy, x, labels, reduction=reduction)
    labels.flat[::3] = NONE
    run(standin_cupy, x, labels, reduction=reduction, ignored=NONE, smoothing=0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, standin_cupy):
    for shape in ((3, 24), (3, 1100), (2, 5, 6)):
        x = normal(*shape, dtype=dtype)
        run(standin_cupy, x, labels_for(x, np.int32), dtype=dtype, smoothing=0.1)
        run(standin_cupy, x, labels_for(x), dtype=dtype, reduction="none")


def test_more_rows_than_groups_of_threads(standin_cupy, monkeypatch):
    monkeypatch.setattr(launches, "MULTIPROCESSORS", 1)
    for shape in ((133, 5), (19, 1030), (300, 3, 2)):
        x = normal(*shape)
        run(standin_cupy, x, labels_for(x))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64"])
def test_labels_of_every_integer_dtype(dtype, standin_cupy):
    x = normal(4, 3)
    labels = labels_for(x, dtype)
    found = nn.softmax_cross_entropy(standin_cupy.asarray(x), standin_cupy.asarray(labels))
    close(found, formula(x, labels.astype(np.int64))[0], "float32")


@pytest.mark.parametrize("shape", [(3, 5), (3, 1500), (1, 5, 3)])
@pytest.mark.parametrize("wrong", [-1, "classes", 2**40])
def test_a_label_that_is_no_class_gives_nan_alone(shape, wrong, standin_cupy):
    x = normal(*shape)
    labels = labels_for(x)
    wrong = shape[1] if wrong == "classes" else wrong
    labels.flat[1] = wrong
    device_x, device_labels = standin_cupy.asarray(x), standin_cupy.asarray(labels)
    y, pullback = culux.vjp(lambda x: nn.softmax_cross_entropy(x, device_labels), device_x)
    assert np.isnan(y.get()).reshape(-1).tolist() == [False, True, False]
    dx = pullback(standin_cupy.asarray(np.ones(y.shape, np.float32)))[0].get()
    assert np.isnan(np.moveaxis(dx, 1, -1).reshape(3, -1)).all(1).tolist() == [False, True, False]
    ignored = losses.cross_entropy(device_x, device_labels, ignore_index=wrong)
    assert np.isfinite(ignored.get())


def test_ignored_examples_of_nan_have_no_loss_and_no_gradient(standin_cupy):
    x, labels = normal(3, 4), np.array([1, 7, 2])
    x[1] = np.nan
    loss, pullback = culux.vjp(
        lambda x: nn.softmax_cross_entropy(x, standin_cupy.asarray(labels), ignore_index=7), standin_cupy.asarray(x)
    )
    assert loss.get()[1] == 0
    assert np.isfinite(loss.get()).all()
    dx = pullback(standin_cupy.asarray(np.ones(3, np.float32)))[0].get()
    assert (dx[1] == 0).all()
    assert np.isfinite(dx).all()


def test_large_and_infinite_logits_as_on_the_host(standin_cupy):
    inf = np.inf
    rows = np.array([[1e4, -1e4], [1e4, 1e4], [-inf, 0], [0, -inf], [-inf, -inf], [inf, 0], [3e38, -3e38]], np.float32)
    labels = np.zeros(len(rows), np.int64)
    for x in (rows, rows[::-1].copy(), np.repeat(rows, 600, axis=1)):
        for smoothing in (0.0, 0.3):
            with np.errstate(all="ignore"):
                expected = nn.softmax_cross_entropy(x, labels, label_smoothing=smoothing)
            found = nn.softmax_cross_entropy(
                standin_cupy.asarray(x), standin_cupy.asarray(labels), label_smoothing=smoothing
            )
            np.testing.assert_allclose(found.get(), expected, rtol=1e-5)


def test_no_digits_are_lost_where_all_logits_are_large(standin_cupy):
    x = (normal(4, 300) + 1e4).astype(np.float32)
    run(standin_cupy, x, labels_for(x), smoothing=0.3)


def test_batches_with_nothing_in_them(standin_cupy):
    x, labels = standin_cupy.zeros((0, 3), "float32"), standin_cupy.zeros((0,), "int64")
    assert nn.softmax_cross_entropy(x, labels).shape == (0,)
    assert losses.cross_entropy(x, labels, reduction="sum").get() == 0
    all_ignored = losses.cross_entropy(
        standin_cupy.asarray(normal(2, 3)), standin_cupy.asarray(np.array([7, 7])), ignore_index=7
    )
    assert np.isnan(all_ignored.get())


def test_strided_logits_labels_and_cotangents(standin_cupy):
    x, labels = normal(6, 4), np.array([0, 9, 1, 9, 2, 9, 3, 9])
    y, pullback = culux.vjp(
        lambda x: nn.softmax_cross_entropy(x, standin_cupy.asarray(labels)[::2]), standin_cupy.asarray(x).T
    )
    loss, slope, _ = formula(x.T, labels[::2])
    close(y, loss, "float32")
    dy = standin_cupy.asarray(normal(8))[::2]
    close(pullback(dy)[0], slope * dy.get()[:, None], "float32", scale=10)


def test_labels_on_the_host_are_refused(standin_cupy):
    with pytest.raises(DeviceError, match=r"argument 1 is on cuda:0 \(cupy\), argument 2 is on cpu \(numpy\)"):
        nn.softmax_cross_entropy(standin_cupy.asarray(normal(2, 3)), np.array([0, 1]))


def test_a_derivative_of_the_derivative(standin_cupy):
    x, labels = normal(3, 4, dtype="float64"), np.array([0, 7, 3])

    def second(x, labels):
        def loss(x):
            return losses.cross_entropy(x, labels, label_smoothing=0.1, ignore_index=7)

        return (culux.gradient(loss, x) ** 2).sum()

    found = culux.gradient(lambda x: second(x, standin_cupy.asarray(labels)), standin_cupy.asarray(x))
    close(found, culux.gradient(lambda x: second(x, labels), x), "float64", scale=100)
