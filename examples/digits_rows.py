"""Read scikit-learn's handwritten digits row by row: a bidirectional GRU over 8 steps of 8 pixels.

    python examples/digits_rows.py [--epochs 40] [--seed 0] [--out digits-rows-run]

Takes the GPU if there is one. Leaves in the output folder a picture with the learning curves, and with what the
network makes of digits of which it has read only the first rows: it takes sequences of any length.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits

import culux
from culux import GRU, Dense, Dropout, losses, nn, optim, training
from culux.data import batches

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 32
SPLIT_SEED = 2026
STEPS = 8


class RowReader(culux.ContainerLayer):
    """Class scores from what a recurrent layer remembers after its last step, in both directions."""

    gru: culux.Layer
    dropout: culux.Layer
    head: culux.Layer

    def forward(self, m: Any, x: Any) -> Any:
        """Scores (batch, classes) of sequences (batch, steps, features), or of a tuple ``(sequences, lengths)``."""
        _, (memory,) = m.gru(x)  # (directions, batch, features)
        return m.head(m.dropout(culux.numpy.concatenate((memory[0], memory[1]), axis=-1)))


def make_model() -> culux.Layer:
    """The network: 32 features in each direction."""
    return RowReader(GRU(STEPS, 32, bidirectional=True, return_carry=True), Dropout(0.2), Dense(64, 10))


def split_digits() -> tuple[Any, Any, Any]:
    """The 1797 digits as (rows of pixels, label): 72 % for training, 8 % for validation, 20 % for the test."""
    digits = load_digits()
    rows, labels = (digits.images / 16).astype(np.float32), digits.target
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    test, validation, train = np.split(order, [len(order) // 5, len(order) // 5 + len(order) // 12])
    return tuple((rows[chosen], labels[chosen]) for chosen in (train, validation, test))


def cover(batch: Any, rng: np.random.Generator) -> Any:
    """The digits of a batch, and how many of their rows are read, ``(rows, lengths)``; half of the time not all."""
    rows, labels = batch
    lengths = np.where(rng.random(len(rows)) < 0.5, STEPS, rng.integers(1, STEPS + 1, len(rows)))
    return (rows, lengths), labels


def read_partly(ts: training.TrainState, device: culux.Device, rows: Any) -> Any:
    """The probabilities (steps, batch, classes) after 1, 2, ... all rows of every digit."""
    m = culux.StatefulLayer(ts.layer, ts.parameters, culux.test_mode(ts.states))
    rows = device(rows)
    found = [nn.softmax(m((rows, np.full(len(rows), steps)))) for steps in range(1, STEPS + 1)]
    return np.stack([culux.to_numpy(probabilities) for probabilities in found])


def draw(history: training.History, rows: Any, labels: Any, probabilities: Any, path: Path) -> None:
    """The learning curves, the accuracy by the number of rows, and three digits as they are read."""
    figure = plt.figure(figsize=(13, 6.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    loss, accuracy, partly = above.subplots(1, 3)
    loss.plot(history["epoch"], history["loss"], label="training, partly covered")
    loss.plot(history["epoch"], history["val_loss"], label="validation")
    loss.set(title="cross entropy", xlabel="epoch")
    loss.legend()
    accuracy.plot(history["epoch"], history["val_accuracy"], color="C1")
    accuracy.set(title="validation accuracy", xlabel="epoch")
    read = np.arange(1, STEPS + 1)
    partly.plot(read, (probabilities.argmax(axis=2) == labels).mean(axis=1), "o-", color="C2")
    partly.set(title="test accuracy by rows read", xlabel="rows read", ylim=(0, 1.05))
    shown = [np.flatnonzero(labels == label)[0] for label in (3, 5, 9)]
    for i, pair in zip(shown, np.split(below.subplots(1, 6), 3), strict=True):
        pair[0].imshow(rows[i], cmap="gray_r", aspect="auto")
        pair[0].set(title=f"a {labels[i]}", xticks=[])
        pair[1].imshow(probabilities[:, i], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        pair[1].set(title="read as", xticks=range(10))
        for axis in pair:
            axis.set_yticks(range(STEPS), read)
        pair[0].set_ylabel("rows read")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, test, and leave the picture."""
    parser = argparse.ArgumentParser(description="Read handwritten digits row by row.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits-rows-run"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    device = culux.gpu_device()
    train, validation, test = split_digits()
    model = make_model()
    print(model)
    sizes = [len(labels) for _, labels in (train, validation, test)]
    print(f"device: {device.name}; digits for training, validation, test: {sizes}")

    steps = -(-len(train[0]) // BATCH) * options.epochs
    rule = optim.chain(optim.clip_norm(1.0), optim.Adam(optim.schedules.cosine(1e-2, steps)))
    ts = training.TrainState.create(options.seed, model, rule, device=device)
    ts, history = training.fit(
        losses.CrossEntropyLoss(),
        culux.DeviceIterator(device, batches(train, BATCH, rng=options.seed, transform=cover)),
        ts,
        epochs=options.epochs,
        validation=batches(validation, 256, rng=0, shuffle=False),
        metrics={"accuracy": training.accuracy},
    )

    probabilities = read_partly(ts, device, test[0])
    draw(history, *test, probabilities, options.out / "digits_rows.png")
    print(f"picture: {options.out}/")
    print(f"test accuracy: {np.mean(probabilities[-1].argmax(axis=1) == test[1]):.3f}")


if __name__ == "__main__":
    main()
