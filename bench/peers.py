"""The workloads in idiomatic torch, eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.harness import Body, Results
from bench.problems import EPOCH, MLP, LeNet


def tape_body(x: np.ndarray, chain: Callable[[Any, Any], Any]) -> Body:
    """Forward and backward of ``chain(x, torch).sum()``."""
    import torch

    leaf = torch.tensor(x, requires_grad=True)

    def run() -> Any:
        leaf.grad = None
        chain(leaf, torch).sum().backward()
        return leaf.grad

    return Body(run, lambda: {"gradient": [run().numpy()]})


def dense_body(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, dy: np.ndarray, activation: str) -> Body:
    """Forward and backward of one Dense layer, with the gradients of weight, bias and input."""
    from torch import nn

    layer = nn.Linear(*reversed(weight.shape))
    load(layer, [weight, bias])
    return layer_body(nn.Sequential(layer, {"relu": nn.ReLU(), "gelu": nn.GELU(approximate="tanh")}[activation]), x, dy)


def conv_body(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, dy: np.ndarray) -> Body:
    """Forward and backward of one 3x3 convolution, with the gradients of weight, bias and input."""
    from torch import nn

    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    load(layer, [weight, bias])
    return layer_body(layer, x, dy)


def layer_body(model: Any, x: np.ndarray, dy: np.ndarray) -> Body:
    """Forward and backward of a module, with the gradients of its parameters and input."""
    import torch

    leaf, cotangent = torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def run() -> Any:
        model.zero_grad(set_to_none=True)
        leaf.grad = None
        y = model(leaf)
        y.backward(cotangent)
        return y

    def result() -> Results:
        y = run()
        gradients = numpy([leaf.grad, *(parameter.grad for parameter in model.parameters())])
        return {"y": [y.detach().numpy()], "gradients": gradients}

    return Body(run, result)


def network(problem: MLP | LeNet) -> Any:
    """The layers of a problem as `torch.nn.Sequential`."""
    from torch import nn

    layers: list[nn.Module] = []
    if isinstance(problem, LeNet):
        first, second = problem.channels
        layers += [nn.Conv2d(1, first, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        for fan_in, width in zip((problem.features, *problem.widths), problem.widths, strict=False):
            layers += [nn.Linear(fan_in, width), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    for fan_in, width in zip(problem.widths, problem.widths[1:], strict=False):
        layers += [nn.Linear(fan_in, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class TorchTraining:
    """The network of a problem, trained by `torch.optim.Adam`."""

    def __init__(self, problem: MLP | LeNet, **adam: Any) -> None:
        import torch

        self.model = network(problem)
        load(self.model, problem.parameters())
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=problem.learning_rate, **adam)

    def forward(self, x: Any) -> Any:
        """The logits, in training mode and without a tape."""
        import torch

        with torch.no_grad():
            return self.model(x)

    def gradients(self, x: Any, labels: Any) -> Any:
        """The loss; leaves the gradients in the parameters."""
        from torch.nn import functional

        self.optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.model(x), labels)
        loss.backward()
        return loss

    def step(self, x: Any, labels: Any) -> Any:
        """One step of training; the loss before it."""
        loss = self.gradients(x, labels)
        self.optimiser.step()
        return loss

    def train(self, x: Any, labels: Any, batches: Iterable[Any]) -> None:
        """A step for each array of indices."""
        self.model.train()
        for indices in batches:
            self.step(x[indices], labels[indices])

    def accuracy(self, x: Any, labels: Any) -> float:
        """The share of right answers, in evaluation mode."""
        self.model.eval()
        return float((self.forward(x).argmax(1) == labels).float().mean())


def load(model: Any, arrays: list[np.ndarray]) -> None:
    """Copy the arrays into the module's parameters, in their order."""
    import torch

    with torch.no_grad():
        for parameter, array in zip(model.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(array))


def numpy(tensors: Iterable[Any]) -> list[np.ndarray]:
    """Copies of the tensors as arrays."""
    return [t.detach().numpy().copy() for t in tensors]


def training_body(problem: MLP | LeNet, part: str, **adam: Any) -> Body:
    """The `forward` pass, the `gradients`, the full `step` or an `epoch` of steps on one batch."""
    import torch

    net = TorchTraining(problem, **adam)
    x, labels = map(torch.from_numpy, problem.data())
    runs = {
        "forward": lambda: net.forward(x),
        "gradients": lambda: net.gradients(x, labels),
        "step": lambda: net.step(x, labels),
        "epoch": lambda: [net.step(x, labels) for _ in range(EPOCH)],
    }

    def result() -> Results:
        if part == "forward":
            return {"logits": numpy([net.forward(x)])}
        losses = numpy([net.gradients(x, labels)])
        gradients = numpy(p.grad for p in net.model.parameters())
        if part in ("step", "epoch"):
            losses = numpy(net.step(x, labels) for _ in range(3))
        return {"losses": losses, "gradients": gradients}

    return Body(runs[part], result)


def digits_body(problem: MLP, data: tuple[np.ndarray, ...], epochs: list[list[np.ndarray]], **adam: Any) -> Body:
    """A whole training from the same start each time; returns the test accuracy.

    The orders come ready; what they cost is less than a thousandth of the training.
    """
    import torch

    x, labels, test_x, test_labels = map(torch.from_numpy, data)
    start = TorchTraining(problem, **adam)
    orders = [[torch.from_numpy(indices) for indices in batches] for batches in epochs]

    def run() -> float:
        net = copy.deepcopy(start)
        for batches in orders:
            net.train(x, labels, batches)
        return net.accuracy(test_x, test_labels)

    def result() -> Results:
        net = copy.deepcopy(start)
        losses = numpy(net.step(x[i], labels[i]) for i in orders[0][:3])
        return {"losses": losses}

    return Body(run, result)
