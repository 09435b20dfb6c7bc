"""The operations under test: a function of arrays, the same on NumPy and CuPy, at several sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import culux
from culux import nn

Arrays = Sequence[Any]
"""Float arrays, of which gradients are taken, and integer ones."""


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name: what the tables call it.
        function: of the arrays; culux's, so that it runs on NumPy in float64 too.
        arrays: ``arrays(rng, *size)`` in float64 and integers, on the host.
        full: the size that is timed.
        checked: sizes that are compared: some that no tile divides, and one that fills the chip.
        dtypes: what is measured.
        passes: how often forward and backward go over the first array, read or written, at the least; None for
            what products bound.
        operations: floating-point operations forward and backward of a size, for what products bound.
        torch: the same in torch, ``torch(torch, *tensors)``; None where it has no such thing.
    """

    name: str
    function: Callable[..., Any]
    arrays: Callable[..., list[np.ndarray]]
    full: tuple[int, ...]
    checked: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = ("float32", "float16")
    passes: tuple[float, float] | None = None
    operations: Callable[..., tuple[float, float]] | None = None
    torch: Callable[..., Any] | None = None


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def _dense(rng: np.random.Generator, rows: int, columns: int, inner: int) -> list[np.ndarray]:
    weight = rng.uniform(-1, 1, (columns, inner)) / math.sqrt(inner)
    return [_normal(rng, rows, inner), weight, _normal(rng, columns)]


def _products(rows: int, columns: int, inner: int) -> tuple[float, float]:
    return 2.0 * rows * columns * inner, 4.0 * rows * columns * inner


def _affine(rng: np.random.Generator, *shape: int) -> list[np.ndarray]:
    return [_normal(rng, *shape) + 3, 1 + _normal(rng, shape[1]) / 4, _normal(rng, shape[1])]


def _batchnorm(x: Any, scale: Any, bias: Any) -> Any:
    return nn.batchnorm(x, scale, bias, None, None, training=True, activation=nn.relu)[0]


def _last(rng: np.random.Generator, rows: int, width: int) -> list[np.ndarray]:
    return [_normal(rng, rows, width), 1 + _normal(rng, width) / 4, _normal(rng, width)]


def _classes(rng: np.random.Generator, rows: int, classes: int) -> list[np.ndarray]:
    return [3 * _normal(rng, rows, classes), rng.integers(0, classes, rows)]


def _with_words(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    state = culux.random.rng_state(7)  # an array like the others: a copy from the host could not be captured
    return [_normal(rng, n), np.concatenate([state.key, state.counter]).view(np.int64)]


def _dropout(x: Any, words: Any) -> Any:
    key, counter = words[:2].view(np.uint64), words[2:].view(np.uint64)
    return nn.dropout(x, culux.Tree(key=key, counter=counter), p=0.3, training=True)[0]


def _words(rng: np.random.Generator, words: int, rows: int, width: int) -> list[np.ndarray]:
    return [_normal(rng, rows, width), rng.integers(0, rows, words)]


def _conv(
    rng: np.random.Generator, batch: int, channels: int, filters: int, size: int, kernel: int, groups: int
) -> list[np.ndarray]:
    width = channels // groups
    weight = rng.uniform(-1, 1, (filters, width, kernel, kernel)) / math.sqrt(width * kernel * kernel)
    return [_normal(rng, batch, channels, size, size), weight, _normal(rng, filters)]


def _taps(batch: int, channels: int, filters: int, size: int, kernel: int, groups: int) -> tuple[float, float]:
    """Of outputs as large as the input."""
    products = 2.0 * batch * filters * size**2 * channels // groups * kernel**2
    return products, 2 * products


def _padding(weight: Any) -> int:
    return int(weight.shape[-1]) // 2


def _lstm(rng: np.random.Generator, batch: int, time: int, width: int) -> list[np.ndarray]:
    weights = [rng.uniform(-1, 1, (4 * width, width)) / math.sqrt(width) for _ in range(2)]
    return [_normal(rng, batch, time, width), *weights, *(_normal(rng, 4 * width) / 4 for _ in range(2))]


def _torch_lstm(torch: Any, x: Any, *weights: Any) -> Any:
    start = x.new_zeros(1, len(x), x.shape[-1])
    return torch.lstm(x, (start, start), weights, True, 1, 0.0, True, False, True)[0]


CASES: tuple[Case, ...] = (
    *(
        Case(
            f"dense relu {width}",
            lambda x, weight, bias: nn.dense(x, weight, bias, activation=nn.relu),
            _dense,
            (rows, width, width),
            ((37, 19, 53), (rows, width, width)),
            operations=_products,
            torch=lambda torch, x, w, b: torch.relu(torch.nn.functional.linear(x, w, b)),
        )
        for rows, width in ((128, 64), (128, 256), (128, 512), (4096, 2048))
    ),
    Case(
        "dense gelu 1024",
        lambda x, weight, bias: nn.dense(x, weight, bias, activation=nn.gelu),
        _dense,
        (1024, 1024, 1024),
        ((1, 7, 130), (1024, 1024, 1024)),
        operations=_products,
        torch=lambda torch, x, w, b: torch.nn.functional.gelu(torch.nn.functional.linear(x, w, b), approximate="tanh"),
    ),
    *(
        Case(
            f"batchnorm relu {'x'.join(map(str, shape))}",
            _batchnorm,
            _affine,
            shape,
            checked,
            passes=(2, 3),
            torch=lambda torch, x, scale, bias: torch.relu(
                torch.nn.functional.batch_norm(x, None, None, scale, bias, training=True)
            ),
        )
        for shape, checked in (
            ((256, 256), ((33, 7), (256, 256))),
            ((8192, 4096), ((1027, 65), (8192, 512))),
            ((64, 256, 28, 28), ((5, 3, 7, 11), (64, 64, 28, 28))),
            ((64, 64, 112, 112), ((2, 1, 3, 129), (16, 16, 112, 112))),
        )
    ),
    Case(
        "layernorm 1024",
        lambda x, scale, bias: nn.layernorm(x, scale, bias, ndim=1),
        _last,
        (32768, 1024),
        ((33, 77), (3, 5000), (4096, 1024)),
        passes=(2, 3),
        torch=lambda torch, x, scale, bias: torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias),
    ),
    Case(
        "rmsnorm 4096",
        lambda x, scale, bias: nn.rmsnorm(x, scale, ndim=1) + 0 * bias.sum(),
        _last,
        (8192, 4096),
        ((33, 77), (1024, 4096)),
        passes=(2, 3),
    ),
    Case(
        "softmax 1024",
        lambda x: nn.softmax(x, axis=-1),
        lambda rng, *shape: [_normal(rng, *shape)],
        (32768, 1024),
        ((33, 77), (3, 20001), (4096, 1024)),
        passes=(2, 3),
        torch=lambda torch, x: torch.softmax(x, -1),
    ),
    Case(
        "cross entropy 1000",
        lambda logits, labels: nn.softmax_cross_entropy(logits, labels),
        _classes,
        (32768, 1000),
        ((7, 3), (129, 1001), (4096, 1000)),
        passes=(1, 2),
        torch=lambda torch, x, labels: torch.nn.functional.cross_entropy(x, labels),
    ),
    Case(
        "gelu",
        nn.gelu,
        lambda rng, n: [_normal(rng, n)],
        (2**26,),
        ((1023,), (2**22,)),
        passes=(2, 3),
        torch=lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    Case(
        "dropout",
        _dropout,
        _with_words,
        (2**26,),
        ((1023,), (2**22,)),
        passes=(2, 2),
        torch=lambda torch, x, words: torch.nn.functional.dropout(x, 0.3),
    ),
    Case(
        "embedding",
        lambda weight, ids: nn.embedding(ids, weight),
        _words,
        (65536, 32000, 512),
        ((77, 5, 13), (8192, 1000, 512)),
        torch=lambda torch, weight, ids: torch.nn.functional.embedding(ids, weight),
    ),
    *(
        Case(
            f"conv relu {kernel}x{kernel} {channels}-{filters} {size}{' depthwise' * (groups > 1)}",
            lambda x, weight, bias: nn.conv(
                x, weight, bias, activation=nn.relu, padding=_padding(weight), groups=x.shape[1] // weight.shape[1]
            ),
            _conv,
            (batch, channels, filters, size, kernel, groups),
            (
                (3, 5, 5, 9, kernel, 5 if groups > 1 else 1),
                (3, channels, filters, 9, kernel, groups),
                (2, channels, filters, min(size, 30), kernel, groups),
            ),
            operations=None if groups > 1 else _taps,
            passes=(2, 4) if groups > 1 else None,
            torch=lambda torch, x, w, b: torch.relu(
                torch.nn.functional.conv2d(x, w, b, padding=_padding(w), groups=x.shape[1] // w.shape[1])
            ),
        )
        for batch, channels, filters, size, kernel, groups in (
            *((16, channels, channels, 64, 3, 1) for channels in (4, 32, 64)),
            (128, 1, 6, 28, 5, 1),  # LeNet's
            (128, 6, 16, 14, 5, 1),
            (16, 3, 64, 224, 3, 1),  # VGG16's: the first and the second, and of each of the others one
            (16, 64, 64, 224, 3, 1),
            (16, 128, 128, 112, 3, 1),
            (16, 256, 256, 56, 3, 1),
            (16, 512, 512, 28, 3, 1),
            (16, 512, 512, 14, 3, 1),
            (32, 256, 256, 56, 3, 256),
        )
    ),
    Case(
        "conv transpose relu 4x4 64-64 32",
        lambda x, weight, bias: nn.conv_transpose(x, weight, bias, activation=nn.relu, stride=2, padding=1),
        _conv,
        (16, 64, 64, 32, 4, 1),
        ((3, 6, 6, 5, 4, 1), (2, 64, 64, 16, 4, 1)),
        operations=_taps,  # a quarter of the taps reach each of four times the outputs
        torch=lambda torch, x, w, b: torch.relu(torch.nn.functional.conv_transpose2d(x, w, b, stride=2, padding=1)),
    ),
    Case(
        "maxpool 2",
        lambda x: nn.maxpool(x, 2),
        lambda rng, *shape: [_normal(rng, *shape)],
        (64, 64, 112, 112),
        ((2, 3, 9, 7), (8, 64, 56, 56)),
        passes=(1.25, 1.5),
        torch=lambda torch, x: torch.nn.functional.max_pool2d(x, 2),
    ),
    *(
        Case(
            f"lstm {width}, 64 steps",
            lambda *arrays: nn.lstm(*arrays)[0],
            _lstm,
            (64, 64, width),
            ((3, 5, 7), (64, 64, width)),
            operations=lambda batch, time, width: (16.0 * batch * time * width**2, 32.0 * batch * time * width**2),
            torch=_torch_lstm,
        )
        for width in (64, 256)
    ),
)
"""Every operation with a kernel."""
