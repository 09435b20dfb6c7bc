"""An MLP in NumPy by hand: gradients derived on paper, buffers made once, every result written with ``out=``.

What culux is measured by beside torch: the time that NumPy itself needs for the arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.harness import Body, Results
from bench.problems import EPOCH, MLP

EPSILON, MOMENTUM = np.float32(1e-5), np.float32(0.1)


class Buffers:
    """The arrays of one BatchNorm layer with relu for one batch size."""

    def __init__(self, rows: int, width: int) -> None:
        shape = (rows, width)
        self.centred, self.y, self.scratch = (np.empty(shape, np.float32) for _ in range(3))
        self.mean, self.inverse, self.factor, self.row = (np.empty(width, np.float32) for _ in range(4))


class FloorMLP:
    """An `MLP` trained by Adam on flat parameters, gradients and moments."""

    def __init__(self, problem: MLP) -> None:
        arrays = problem.parameters()
        self.flat = np.concatenate([a.ravel() for a in arrays])
        self.flat_gradient, self.m, self.v, self.s, self.t = (np.zeros_like(self.flat) for _ in range(5))
        shapes = [a.shape for a in arrays]
        self.parameters = views(self.flat, shapes)
        self.gradients_ = views(self.flat_gradient, shapes)
        hidden = problem.widths[1:-1]
        self.running = [(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in hidden]
        self.widths, self.learning_rate, self.steps = hidden, problem.learning_rate, 0
        self.buffers: dict[int, tuple[np.ndarray, list[Buffers]]] = {}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The logits, in training mode."""
        rows = len(x)
        if rows not in self.buffers:
            self.buffers[rows] = np.full(rows, 1 / rows, np.float32), [Buffers(rows, n) for n in self.widths]
        means, layers = self.buffers[rows]
        for i, (b, (running_mean, running_var)) in enumerate(zip(layers, self.running, strict=True)):
            weight, bias, scale, shift = self.parameters[4 * i : 4 * i + 4]
            z = np.matmul(x, weight.T, out=b.centred)
            # The mean takes the bias away again, so only the running mean sees it.
            z -= np.matmul(means, z, out=b.mean)
            variance = np.matmul(means, np.multiply(z, z, out=b.y), out=b.row)
            running_mean += MOMENTUM * (b.mean + bias - running_mean)
            running_var += MOMENTUM * (variance * np.float32(rows / (rows - 1)) - running_var)
            b.inverse = np.float32(1) / np.sqrt(variance + EPSILON)
            y = np.multiply(z, np.multiply(b.inverse, scale, out=b.factor), out=b.y)
            y += shift
            x = np.clip(y, np.float32(0), np.float32(np.inf), out=y)  # a third of maximum's time
        weight, bias = self.parameters[-2:]
        return x @ weight.T + bias

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> float:
        """The loss; leaves the gradients in `gradients_`."""
        logits = self.forward(x)
        rows = len(x)
        means, layers = self.buffers[rows]
        logits -= logits.max(1, keepdims=True)
        picked = np.arange(rows), labels
        scores = logits[picked]
        np.exp(logits, out=logits)
        total = logits.sum(1, keepdims=True)
        loss = float((np.log(total[:, 0]) - scores).mean())
        logits /= total
        logits[picked] -= np.float32(1)
        logits /= np.float32(rows)
        self.backward(logits, x, layers, means * np.float32(rows))
        return loss

    def backward(self, dy: np.ndarray, x: np.ndarray, layers: list[Buffers], ones: np.ndarray) -> None:
        """Fill the gradients from that of the logits."""
        inputs = [x, *(b.y for b in layers)]
        factor = np.float32(1 / len(x))
        for i in reversed(range(len(inputs))):
            weight = self.parameters[4 * i]
            d_weight, d_bias = self.gradients_[4 * i : 4 * i + 2]
            np.matmul(dy.T, inputs[i], out=d_weight)
            np.matmul(ones, dy, out=d_bias)
            if i == 0:
                return
            b = layers[i - 1]
            d_scale, d_shift = self.gradients_[4 * i - 2 : 4 * i]
            positive = np.greater(b.y, np.float32(0), out=b.scratch, casting="unsafe")
            dy = np.matmul(dy, weight, out=b.y)
            dy *= positive
            np.matmul(ones, dy, out=d_shift)
            np.matmul(ones, np.multiply(dy, b.centred, out=b.scratch), out=d_scale)
            d_scale *= b.inverse
            # dx = factor * (dy - mean(dy) - normal * mean(dy * normal)), normal being centred * inverse
            dy *= b.factor
            b.centred *= np.multiply(d_scale, b.factor * b.inverse * factor, out=b.row)
            dy -= b.centred
            dy -= np.multiply(d_shift, b.factor * factor, out=b.row)

    def step(self, x: np.ndarray, labels: np.ndarray) -> float:
        """One step of Adam; the loss before it."""
        loss = self.gradients(x, labels)
        self.steps += 1
        g, m, v, s, t = self.flat_gradient, self.m, self.v, self.s, self.t
        correction1, correction2 = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        m += np.multiply(np.subtract(g, m, out=s), np.float32(0.1), out=s)
        v *= np.float32(0.999)
        np.multiply(g, g, out=s)
        v += np.multiply(s, np.float32(0.001), out=s)
        np.sqrt(v, out=s)
        s *= np.float32(1 / math.sqrt(correction2))
        s += np.float32(1e-8)
        np.divide(m, s, out=t)
        self.flat -= np.multiply(t, np.float32(self.learning_rate / correction1), out=t)
        return loss

    def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
        """The share of right answers, by the running statistics."""
        for i, (mean, variance) in enumerate(self.running):
            weight, bias, scale, shift = self.parameters[4 * i : 4 * i + 4]
            x = np.maximum((x @ weight.T + bias - mean) / np.sqrt(variance + EPSILON) * scale + shift, np.float32(0))
        weight, bias = self.parameters[-2:]
        return float(((x @ weight.T + bias).argmax(1) == labels).mean())


def views(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Consecutive pieces of a flat array in these shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def mlp_body(problem: MLP, part: str) -> Body:
    """The `forward` pass, the `gradients`, the full `step` or an `epoch` of steps of an MLP on one batch."""
    net = FloorMLP(problem)
    x, labels = problem.data()
    runs: dict[str, Any] = {
        "forward": lambda: net.forward(x),
        "gradients": lambda: net.gradients(x, labels),
        "step": lambda: net.step(x, labels),
        "epoch": lambda: [net.step(x, labels) for _ in range(EPOCH)],
    }

    def result() -> Results:
        if part == "forward":
            return {"logits": [net.forward(x)]}
        losses = [net.gradients(x, labels)]
        gradients = [g.copy() for g in net.gradients_]
        if part in ("step", "epoch"):
            losses = [net.step(x, labels) for _ in range(3)]
        return {"losses": losses, "gradients": gradients}

    return Body(runs[part], result)


def digits_body(problem: MLP, data: tuple[np.ndarray, ...], epochs: list[list[np.ndarray]]) -> Body:
    """A whole training from the same start each time; returns the test accuracy."""
    x, labels, test_x, test_labels = data

    def run() -> float:
        net = FloorMLP(problem)
        for batches in epochs:
            for indices in batches:
                net.step(x[indices], labels[indices])
        return net.accuracy(test_x, test_labels)

    def result() -> Results:
        net = FloorMLP(problem)
        return {"losses": [net.step(x[i], labels[i]) for i in epochs[0][:3]]}

    return Body(run, result)
