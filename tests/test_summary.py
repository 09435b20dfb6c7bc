"""`culux.summary`: shapes, counts and operations of a model's layers, and the table that shows them."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux import Chain, Conv, Dense
from culux.autodiff.flops import MOVES, PRODUCTS
from culux.errors import LayerError, ShapeError
from tests.test_completeness import operations

MODEL = Chain(
    stem=Chain(Conv((3, 3), 1, 8, culux.relu, padding="same"), culux.MaxPool((2, 2))),
    body=culux.SkipConnection(Conv((3, 3), 8, 8, padding="same"), cnp.add),
    flat=culux.FlattenLayer(),
    head=Dense(32, 10),
)


def flops(layer, x):
    return culux.summary(layer, x).rows[0].flops


def test_rows():
    table = culux.summary(MODEL, (4, 1, 4, 4))
    found = {row.path: (row.depth, row.output_shape, row.parameters, row.output_bytes) for row in table.rows}
    assert found == {
        "": (0, (4, 10), 80 + 584 + 330, 2048 + 512 + 512 + 512 + 160),
        "stem": (1, (4, 8, 2, 2), 80, 2048 + 512),
        "stem.layer_1": (2, (4, 8, 4, 4), 80, 2048),
        "stem.layer_2": (2, (4, 8, 2, 2), 0, 512),
        "body": (1, (4, 8, 2, 2), 584, 512),
        "body.layers": (2, (4, 8, 2, 2), 584, 512),
        "flat": (1, (4, 32), 0, 512),
        "head": (1, (4, 10), 330, 160),
    }
    assert [row.path for row in table.rows] == list(found)
    assert table.rows[3].layer == culux.MaxPool((2, 2))
    assert (table.parameters, table.parameter_bytes, table.states, table.state_bytes) == (994, 4 * 994, 0, 0)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (Dense(3, 5, use_bias=False), (7, 3), 2 * 7 * 3 * 5),
        (Dense(3, 5), (7, 3), 2 * 7 * 3 * 5 + 7 * 5),
        (Dense(3, 5, culux.relu), (7, 3), 2 * 7 * 3 * 5 + 2 * 7 * 5),
        (Conv((3, 3), 4, 6, use_bias=False, groups=2), (2, 4, 5, 5), 2 * (2 * 6 * 3 * 3) * (2 * 3 * 3)),
        (culux.ConvTranspose((2,), 4, 6, use_bias=False), (2, 4, 5), 2 * (2 * 4 * 5) * (6 * 2)),
        (culux.WrappedFunction(lambda x: cnp.einsum("ij,kj->ik", x, x)), (3, 4), 2 * 3 * 3 * 4),
        (culux.WrappedFunction(lambda x: cnp.exp(x).sum() + cnp.reshape(x, (-1,))), (3, 4), 3 * 12),
        (culux.RepeatedLayer(Dense(3, 3, use_bias=False), repeats=4), (2, 3), 4 * 2 * 2 * 9),
        (culux.FlattenLayer(), (2, 3, 4), 0),
    ],
    ids=repr,
)
def test_operations(layer, shape, expected):
    assert flops(layer, shape) == expected


def test_the_operations_of_a_model_are_those_of_its_layers():
    table = culux.summary(MODEL, (4, 1, 4, 4))
    by_path = {row.path: row.flops for row in table.rows}
    assert by_path["stem"] == by_path["stem.layer_1"] + by_path["stem.layer_2"]
    assert by_path["body"] == by_path["body.layers"] + 4 * 32  # the sum with the input
    assert by_path[""] == by_path["stem"] + by_path["body"] + by_path["head"]


def test_products_and_moves_are_operations_that_exist():
    names = {operation.name for operation in operations().values()}
    assert PRODUCTS.keys() <= names
    assert names >= MOVES


def test_what_plain_arrays_only_take_is_shown_without_operations():
    table = culux.summary(Chain(Dense(3, 4), lambda x: np.asarray(x) * 2), (2, 3))
    assert [(row.path, row.output_shape, row.flops) for row in table.rows] == [
        ("", (2, 4), None), ("layer_1", (2, 4), None), ("layer_2", (2, 4), None),
    ]  # fmt: skip
    assert str(table).splitlines()[2].endswith("  ?")


def test_the_table():
    assert str(culux.summary(Chain(Dense(300, 500, culux.relu), culux.BatchNorm(500)), (8, 300))) == "\n".join(
        [
            "layer                              output shape  parameters  output memory   FLOPs",
            "----------------------------------------------------------------------------------",
            "Chain                              (8, 500)         151,500          32 kB  2.42 M",
            "  layer_1 = Dense(300, 500, relu)  (8, 500)         150,500          16 kB  2.41 M",
            "  layer_2 = BatchNorm(500)         (8, 500)           1,000          16 kB    16 k",
            "----------------------------------------------------------------------------------",
            "parameters: 151,500 (606 kB), states: 1,001 (4 kB)",
        ]
    )


def test_inputs_of_all_kinds():
    pair = culux.Parallel(None, Dense(3, 4), Dense(2, 5))
    assert culux.summary(pair, ((7, 3), (7, 2))).rows[0].output_shape == ((7, 4), (7, 5))
    ids = culux.summary(culux.Embedding(7, 3), np.zeros((2, 5), np.int64))
    assert ids.rows[0].output_shape == (2, 5, 3)


def test_given_parameters_and_states_are_taken():
    ps, st = culux.setup(0, Dense(3, 4), dtype="float64")
    table = culux.summary(Dense(3, 4), np.zeros((2, 3)), ps, st)
    assert table.parameter_bytes == 16 * 8
    assert table.rows[0].output_bytes == 8 * 8


def test_it_works_in_test_mode_and_changes_nothing():
    model = Chain(Dense(3, 4), culux.BatchNorm(4), culux.Dropout(0.5))
    ps, st = culux.setup(0, model)
    culux.summary(model, (1, 3), ps, st)  # in training a batch of one has no variance
    again = culux.setup(0, model)
    for a, b in zip(culux.tree.leaves((ps, st)), culux.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_the_gpu(standin_cupy):
    gpu = culux.gpu_device(force=True)
    ps, st = culux.setup(0, MODEL, device=gpu)
    table = culux.summary(MODEL, gpu(np.zeros((4, 1, 4, 4), np.float32)), ps, st)
    assert table == culux.summary(MODEL, (4, 1, 4, 4))


def test_errors():
    with pytest.raises(LayerError, match=r"expected summary\(layer, x\), got int 3 for the layer"):
        culux.summary(3, (2, 3))
    with pytest.raises(ShapeError, match=r"in layer_1 \(Dense\(3, 4\)\): expected x\.shape\[-1\] == 3, got 5"):
        culux.summary(Chain(Dense(3, 4)), (2, 5))
