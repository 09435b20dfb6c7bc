"""The layers' shapes: reshaping, output shapes, wrong shapes and arguments."""

from __future__ import annotations

import operator
import re

import numpy as np
import pytest

import culux
from culux.errors import LayerError, ShapeError
from culux.layers import (
    BatchNorm,
    BranchLayer,
    Chain,
    Dense,
    Dropout,
    FlattenLayer,
    LayerNorm,
    NoOpLayer,
    Parallel,
    ReshapeLayer,
    RMSNorm,
    Scale,
    SelectDim,
    SkipConnection,
    WrappedFunction,
)
from culux.nn import relu
from tests.layers_support import RNG, Add, ran

# Shapes


def test_reshaping_layers():
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(ran(FlattenLayer(), x)[0], x.reshape(2, 12))
    np.testing.assert_array_equal(ran(ReshapeLayer((4, -1)), x)[0], x.reshape(2, 4, 3))
    np.testing.assert_array_equal(ran(SelectDim(-1, 2), x)[0], x[..., 2])
    np.testing.assert_array_equal(ran(SelectDim(1, -1), x)[0], x[:, -1])
    assert ran(NoOpLayer(), x)[0] is x


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (Dense(3, 4), (7, 3), (7, 4)),
        (Dense(3, 4), (2, 5, 3), (2, 5, 4)),
        (Scale((2, 3)), (4, 2, 3), (4, 2, 3)),
        (WrappedFunction(relu), (2, 3), (2, 3)),
        (WrappedFunction(np.sin), (2, 3), (2, 3)),
        (FlattenLayer(), (2, 3, 4), (2, 12)),
        (FlattenLayer(), (2,), (2, 1)),
        (ReshapeLayer((2, -1)), (5, 6), (5, 2, 3)),
        (SelectDim(-2, 0), (2, 3, 4), (2, 4)),
        (BatchNorm(3), (2, 3, 4), (2, 3, 4)),
        (LayerNorm(4), (2, 3, 4), (2, 3, 4)),
        (RMSNorm((3, 4)), (2, 3, 4), (2, 3, 4)),
        (Dropout(0.5), (2, 3), (2, 3)),
        (Chain(Dense(3, 4), relu, Dense(4, 1)), (9, 3), (9, 1)),
        (Parallel(None, Dense(3, 4), Dense(2, 1)), ((9, 3), (9, 2)), ((9, 4), (9, 1))),
        (Parallel(operator.add, Dense(3, 4), Dense(3, 1)), (9, 3), (9, 4)),
        (BranchLayer(Dense(3, 4), relu), (9, 3), ((9, 4), (9, 3))),
        (BranchLayer(relu, relu, fusion=Add()), (9, 3), (9, 3)),
        (SkipConnection(Dense(3, 3), culux.numpy.multiply), (9, 3), (9, 3)),
    ],
    ids=repr,
)
def test_output_shapes(layer, given, expected):
    assert culux.output_shape(layer, given) == expected
    shapes = given if isinstance(given[0], tuple) else (given,)
    x = tuple(RNG.standard_normal(shape).astype(np.float32) for shape in shapes)
    y, _, _ = ran(layer, x if len(x) > 1 else x[0])
    assert (tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape) == expected


def test_output_shapes_that_are_not_known():
    with pytest.raises(LayerError, match=r"the output shape of the function <lambda> is not known without calling it"):
        culux.output_shape(Chain(lambda x: x), (2, 3))
    with pytest.raises(LayerError, match=r"in BranchLayer.*: the output shape of the function concatenate"):
        culux.output_shape(BranchLayer(relu, fusion=np.concatenate), (2, 3))
    with pytest.raises(ShapeError, match=r"expected outputs that broadcast for add, got \(\(9, 4\), \(9, 2\)\)"):
        culux.output_shape(Parallel(operator.add, Dense(3, 4), Dense(3, 2)), (9, 3))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Dense(128, 10), (32, 64), "expected x.shape[-1] == 128, got 64 (x has shape (32, 64))"),
        (Dense(3, 4), (), "expected x.ndim >= 1, got 0 (x has shape ())"),
        (Scale((2, 3)), (5, 3, 2), "expected x.shape[-2:] == (2, 3), got (3, 2) (x has shape (5, 3, 2))"),
        (Scale((2, 3)), (3,), "expected x.ndim >= 2, got 1 (x has shape (3,))"),
        (FlattenLayer(), (), "expected x.ndim >= 1, got 0 (x has shape ())"),
        (
            ReshapeLayer((2, 2)),
            (5, 6),
            "expected samples of 4 elements for the shape (2, 2), got 6 (x has",
        ),
        (ReshapeLayer((4, -1)), (5, 6), "expected samples of 4 elements or a multiple for the shape (4, -1), got 6"),
        (SelectDim(2, 0), (5, 6), "expected x.ndim >= 3, got 2 (x has shape (5, 6))"),
        (SelectDim(1, 6), (5, 6), "expected x.shape[1] > 6, got 6 (x has shape (5, 6))"),
        (BatchNorm(4), (5, 3), "expected x.shape[1] == 4, got 3 (x has shape (5, 3))"),
        (BatchNorm(4), (4,), "expected x.ndim >= 2, got 1 (x has shape (4,))"),
        (LayerNorm((2, 3)), (5, 3), "expected x.shape[-2:] == (2, 3), got (5, 3) (x has shape (5, 3))"),
        (RMSNorm(4), (5, 3), "expected x.shape[-1:] == (4,), got (3,) (x has shape (5, 3))"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_shapes_are_told_alike_by_the_call_and_by_output_shape(layer, shape, message):
    text = re.escape(f"in layer_2 ({layer!r}): {message}")
    model = Chain(NoOpLayer(), layer)
    with pytest.raises(ShapeError, match=text):
        ran(model, np.ones(shape, np.float32))
    with pytest.raises(ShapeError, match=text):
        culux.output_shape(model, shape)
    with pytest.raises(ShapeError, match=re.escape(f"in {layer!r}: {message}")):
        culux.output_shape(layer, shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0, 3), "Dense: expected in_dims to be a positive int, got int 0"),
        (lambda: Dense(3, 2.0), "Dense: expected out_dims to be a positive int, got float 2.0"),
        (lambda: Scale(()), "Scale: expected shape to be a positive int or a tuple of them"),
        (lambda: LayerNorm((2, 0)), "LayerNorm: expected shape to be a positive int or a tuple of them"),
        (lambda: RMSNorm(0), "RMSNorm: expected shape to be a positive int or a tuple of them"),
        (lambda: RMSNorm(3, epsilon=-1), "RMSNorm: expected epsilon to be a number >= 0, got int -1"),
        (lambda: BatchNorm("3"), "BatchNorm: expected channels to be a positive int, got str '3'"),
        (lambda: BatchNorm(3, epsilon=-1), "BatchNorm: expected epsilon to be a number >= 0, got int -1"),
        (lambda: BatchNorm(3, momentum=2), "BatchNorm: expected momentum to be a number between 0 and 1, got int 2"),
        (lambda: ReshapeLayer((-1, -1)), "ReshapeLayer: expected a tuple of lengths without the batch's"),
        (lambda: ReshapeLayer(3), "ReshapeLayer: expected a tuple of lengths without the batch's"),
        (lambda: SelectDim(1, 1.0), "SelectDim: expected index to be an int, got float 1.0"),
        (lambda: WrappedFunction(3), "WrappedFunction: expected a function, got int 3"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()


def test_x_is_an_array():
    for layer in (Dense(3, 2), BatchNorm(3), LayerNorm(3), Scale(3), FlattenLayer(), Dropout(0.5)):
        with pytest.raises(LayerError, match=r"expected x to be an array, got list .*np.asarray\(x, np.float32\)"):
            ran(layer, [[1.0, 2.0, 3.0]])
