"""The entries of `culux.init`: distributions by their formulas, matrices by their properties."""

from __future__ import annotations

import math

import numpy as np

from culux import init
from tests.catalogue.case import InitCase

WITHOUT_ENTRY = {
    "Initialiser": "the base class of the records; tests/test_init.py",
    "calculate_gain": "a number, not an initialiser; tests/test_init.py",
    "fans": "two numbers, not an initialiser; tests/test_init.py",
}

# A weight (64, 100) has fan_in 100 and fan_out 64; a kernel (32, 8, 5, 5) has 200 and 800.
KERNEL = (32, 8, 5, 5)


def uniform(name: str, record: init.Initialiser, bound: float, **rest: object) -> InitCase:
    """Uniform between -bound and bound."""
    return InitCase(f"culux.init.{name}", record, mean=0, std=bound / math.sqrt(3), low=-bound, high=bound, **rest)


def orthonormal(array: np.ndarray) -> None:
    """Rows or columns, whichever are fewer, are orthonormal."""
    q = array.reshape(len(array), -1).astype(np.float64)
    q = q if q.shape[0] <= q.shape[1] else q.T
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-5)


def twice_orthonormal(array: np.ndarray) -> None:
    orthonormal(array / 2)


def half_zero(array: np.ndarray) -> None:
    """32 of 64 elements of each column are 0."""
    assert (np.count_nonzero(array, axis=0) == 32).all()


def identity_matrix(array: np.ndarray) -> None:
    assert (array == np.eye(64, 100)).all()


def shifted_matrix(array: np.ndarray) -> None:
    """Input i is output i + 2."""
    assert (array[2:] == np.eye(62, 100)).all()
    assert (array[:2] == np.eye(64, 100)[62:]).all()


def shifted_kernel(array: np.ndarray) -> None:
    assert (array[:, :, 1, 1] == 3 * np.eye(4, 6)).all()
    assert np.count_nonzero(array) == 4


def identity_kernel(array: np.ndarray) -> None:
    assert (array[:, :, 1, 2] == 3 * np.eye(4, 6)).all()
    assert np.count_nonzero(array) == 4


CASES = [
    InitCase("culux.init.zeros", init.zeros, low=0, high=0),
    InitCase("culux.init.ones", init.ones, low=1, high=1),
    InitCase("culux.init.constant", init.constant(2.5), low=2.5, high=2.5),
    InitCase("culux.init.uniform", init.uniform, mean=0.5, std=1 / math.sqrt(12), low=0, high=1),
    uniform("uniform", init.uniform(-3, 3), 3, label="symmetric"),
    InitCase("culux.init.normal", init.normal, mean=0, std=1),
    InitCase("culux.init.normal", init.normal(5, 0.1), mean=5, std=0.1, label="moved"),
    # The variance of N(0, 1) within [-2, 2] is 1 - 4 phi(2) / (2 Phi(2) - 1).
    InitCase("culux.init.truncated_normal", init.truncated_normal, mean=0, std=math.sqrt(0.7737413), low=-2, high=2),
    InitCase(
        "culux.init.truncated_normal", init.truncated_normal(1, 0.5, 0, 2), label="moved",
        mean=1, std=0.5 * math.sqrt(0.7737413), low=0, high=2,
    ),
    uniform("glorot_uniform", init.glorot_uniform, math.sqrt(6 / 164)),
    uniform("glorot_uniform", init.glorot_uniform(gain=2), 2 * math.sqrt(6 / 1000), shape=KERNEL, label="kernel"),
    InitCase("culux.init.glorot_normal", init.glorot_normal, mean=0, std=math.sqrt(2 / 164)),
    uniform("kaiming_uniform", init.kaiming_uniform, math.sqrt(6 / 100)),
    uniform("kaiming_uniform", init.kaiming_uniform(gain=1), math.sqrt(3 / 200), shape=KERNEL, label="kernel"),
    InitCase("culux.init.kaiming_normal", init.kaiming_normal, mean=0, std=math.sqrt(2 / 100)),
    InitCase(
        "culux.init.kaiming_normal", init.kaiming_normal(nonlinearity="tanh", mode="fan_out"), label="tanh",
        mean=0, std=5 / 3 / math.sqrt(64),
    ),
    uniform("torch_uniform", init.torch_uniform, 1 / 10),
    uniform("torch_uniform", init.torch_uniform, 1 / math.sqrt(200), shape=KERNEL, label="kernel"),
    uniform("torch_uniform", init.torch_uniform(fan_in=25), 1 / 5, shape=(5000,), label="bias"),
    InitCase("culux.init.orthogonal", init.orthogonal, check=orthonormal),
    InitCase(
        "culux.init.orthogonal", init.orthogonal(gain=2), shape=(100, 3, 7), check=twice_orthonormal, label="tall",
    ),
    InitCase("culux.init.sparse", init.sparse(sparsity=0.5), mean=0, std=0.01 / math.sqrt(2), check=half_zero),
    InitCase("culux.init.identity", init.identity, check=identity_matrix),
    InitCase("culux.init.identity", init.identity(gain=3), shape=(4, 6, 3, 5), check=identity_kernel, label="kernel"),
    InitCase("culux.init.identity", init.identity(shift=2), check=shifted_matrix, label="shift"),
    InitCase(
        "culux.init.identity", init.identity(3, shift=(0, 0, 0, -1)), shape=(4, 6, 3, 5), check=shifted_kernel,
        label="shift of a kernel",
    ),
]  # fmt: skip
