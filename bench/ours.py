"""The workloads in culux, through its public interface."""

from __future__ import annotations

from typing import Any

import numpy as np

import culux
from bench.harness import Body, Results
from bench.problems import EPOCH, MLP, LeNet
from culux import BatchNorm, Chain, Conv, Dense, FlattenLayer, Layer, MaxPool, Tree, relu
from culux.losses import CrossEntropyLoss
from culux.optim import Adam
from culux.training import TrainState, compute_gradients, fit, single_train_step

SEED = 0


def layer_body(layer: Layer, weight: np.ndarray, bias: np.ndarray, x: np.ndarray, dy: np.ndarray) -> Body:
    """Forward and backward of one layer, with the gradients of weight, bias and input."""
    ps, st = culux.Tree(weight=weight, bias=bias), culux.initial_states(0, layer)

    def run() -> tuple:
        y, pullback = culux.vjp(lambda ps, x: layer(x, ps, st)[0], ps, x)
        return y, pullback(dy)

    def result() -> Results:
        y, (grads, dx) = run()
        return {"y": [y], "gradients": [dx, grads.weight, grads.bias]}

    return Body(run, result)


def network(problem: MLP | LeNet) -> Layer:
    """The layers of a problem."""
    layers: list[Layer] = []
    if isinstance(problem, LeNet):
        first, second = problem.channels
        layers += [Conv((5, 5), 1, first, relu, padding="same"), MaxPool((2, 2))]
        layers += [Conv((5, 5), first, second, relu), MaxPool((2, 2)), FlattenLayer()]
        *hidden, last = zip((problem.features, *problem.widths), problem.widths, strict=False)
        return Chain(*layers, *(Dense(*widths, relu) for widths in hidden), Dense(*last))
    for fan_in, width in zip(problem.widths, problem.widths[1:], strict=False):
        layers += [Dense(fan_in, width), BatchNorm(width, relu)]
    return Chain(*layers[:-1])


def train_state(problem: MLP | LeNet) -> TrainState:
    """The network with the problem's initial values."""
    model = network(problem)
    ps, st = culux.setup(SEED, model)
    ps = culux.tree.unflatten(culux.tree.structure(ps), problem.parameters())
    return TrainState(model, ps, st, Adam(problem.learning_rate))


class Training:
    """Steps of training on one batch, each from where the last one ended."""

    def __init__(self, problem: MLP | LeNet) -> None:
        self.state = train_state(problem)
        self.batch = problem.data()
        self.objective = CrossEntropyLoss()

    def forward(self) -> Any:
        """The logits, in training mode."""
        ts = self.state
        return ts.layer(self.batch[0], ts.parameters, ts.states)[0]

    def gradients(self) -> tuple[Tree, Any]:
        """The gradients and the loss."""
        gradients, loss, _, self.state = compute_gradients(self.objective, self.batch, self.state)
        return gradients, loss

    def step(self) -> Any:
        """The loss before the step."""
        loss, _, self.state = single_train_step(self.objective, self.batch, self.state)
        return loss

    def epoch(self) -> Any:
        """An epoch of steps by `fit`, which updates its own arrays in place, as torch's optimisers do."""
        self.state, history = fit(self.objective, [self.batch] * EPOCH, self.state, epochs=1, progress=False)
        return history["loss"][-1]


def training_body(problem: MLP | LeNet, part: str) -> Body:
    """The `forward` pass, the `gradients`, the full `step` or an `epoch` of steps on one batch."""
    training = Training(problem)

    def result() -> Results:
        if part == "forward":
            return {"logits": [training.forward()]}
        gradients, loss = training.gradients()
        losses = [training.step() for _ in range(3)] if part in ("step", "epoch") else [loss]
        return {"losses": losses, "gradients": culux.tree.leaves(gradients)}

    return Body(getattr(training, part), result)


def orders(rows: int, batch: int, epochs: int) -> list[list[np.ndarray]]:
    """The indices of each batch of each epoch, as `digits_body` draws them."""
    batches = culux.data.batches(np.arange(rows), batch, rng=SEED)
    return [list(batches) for _ in range(epochs)]


def digits_body(problem: MLP, data: tuple[np.ndarray, ...], epochs: int) -> Body:
    """A whole training by `fit` from the same start each time; returns the test accuracy."""
    x, labels, test_x, test_labels = data
    objective = CrossEntropyLoss()

    def run() -> float:
        batches = culux.data.batches((x, labels), problem.batch, rng=SEED)
        ts, _ = fit(objective, batches, train_state(problem), epochs=epochs, progress=False)
        logits, _ = ts.layer(test_x, ts.parameters, culux.test_mode(ts.states))
        return float((logits.argmax(1) == test_labels).mean())

    def result() -> Results:
        ts, losses = train_state(problem), []
        for batch in list(culux.data.batches((x, labels), problem.batch, rng=SEED))[:3]:
            loss, _, ts = single_train_step(objective, batch, ts)
            losses.append(loss)
        return {"losses": losses}

    return Body(run, result)
