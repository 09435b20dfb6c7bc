"""What torch says of the catalogue's entries: computed where it is installed, else read from `torch_values.npz`.

python -m tests.torch_values        # write the file anew: after an entry was added or its inputs changed
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from culux import tree
from culux.testing.derivatives import weights
from tests.catalogue import entries
from tests.catalogue.case import Case, LayerCase, RuleCase, random_tree

FILE = Path(__file__).with_suffix(".npz")


def compared() -> Iterator[Case | RuleCase]:
    """The entries that torch is the reference of; a layer as its function."""
    for entry in entries():
        if isinstance(entry, Case | LayerCase | RuleCase) and entry.torch:
            yield entry.as_case() if isinstance(entry, LayerCase) else entry


def computed(entry: Case | RuleCase, torch: Any) -> list[np.ndarray]:
    """A function's outputs, and the gradients of their weighted sum; a rule's parameters after 20 steps."""
    return _rule(entry, torch) if isinstance(entry, RuleCase) else _function(entry, torch)


def stored(entry: Case | RuleCase) -> list[np.ndarray]:
    """The same from the file."""
    found = [array for name, array in _file().items() if name.rpartition("|")[0] == str(entry)]
    if not found:
        raise AssertionError(f"{FILE.name} has no values of {entry}; write it anew: python -m tests.torch_values")
    return found


def expected(entry: Case | RuleCase) -> list[np.ndarray]:
    """What torch says, by torch where it is installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return stored(entry)
    return computed(entry, torch)


def steps() -> tuple[Any, list[Any]]:
    """The parameters and the 20 gradients that rules are compared on."""
    rng = np.random.default_rng(0)
    return random_tree(rng), [random_tree(rng) for _ in range(20)]


def _function(case: Case, torch: Any) -> list[np.ndarray]:
    arrays = case.arrays(case.widest)
    tensors = [torch.tensor(x) for x in arrays]
    wanted = [tensors[i].requires_grad_() for i in case.positions()]
    outputs = tree.leaves(case.torch(torch, *tensors))
    values = [y.detach().numpy() for y in outputs]
    if not wanted:
        return values
    pairs = zip(outputs, values, strict=True)
    total = sum((y * torch.tensor(weights(value, k))).sum() for k, (y, value) in enumerate(pairs))
    slopes = torch.autograd.grad(total, wanted, allow_unused=True)
    zeros = (torch.zeros_like(x) for x in wanted)
    return values + [(zero if s is None else s).numpy() for s, zero in zip(slopes, zeros, strict=True)]


def _rule(case: RuleCase, torch: Any) -> list[np.ndarray]:
    ps, gradients = steps()
    tensors = [torch.tensor(x, requires_grad=True) for x in tree.leaves(ps)]
    optimizer = case.torch(torch, tensors)
    for gradient in gradients:
        for tensor, slope in zip(tensors, tree.leaves(gradient), strict=True):
            tensor.grad = torch.tensor(slope)
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors]


@functools.cache
def _file() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


def main() -> None:
    """Write the file."""
    import torch

    arrays = {f"{entry}|{k}": array for entry in compared() for k, array in enumerate(computed(entry, torch))}
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {len(arrays)} arrays by torch {torch.__version__}")


if __name__ == "__main__":
    main()
