"""Train a network on scikit-learn's handwritten digits: an MLP with BatchNorm and Dropout.

    python examples/digits.py [--epochs 30] [--seed 0] [--out digits-run]

Takes the GPU if there is one. Leaves in the output folder a checkpoint, from which a run that was
stopped continues, the epochs as CSV, and a picture with the learning curves and the misclassified digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits

import culux
from culux import BatchNorm, Chain, Dense, Dropout, losses, optim, relu, training
from culux.data import batches

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 64
SPLIT_SEED = 2026


def split_digits() -> tuple[Any, Any, Any]:
    """The 1797 digits as (pixels in [0, 1], label): 72 % for training, 8 % for validation, 20 % for the test."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    test, validation, train = np.split(order, [len(order) // 5, len(order) // 5 + len(order) // 12])
    return tuple((images[rows], labels[rows]) for rows in (train, validation, test))


def make_model() -> culux.Layer:
    """The network: 64-128-128-10."""
    return Chain(
        Dense(64, 128),
        BatchNorm(128, relu),
        Dropout(0.2),
        Dense(128, 128),
        BatchNorm(128, relu),
        Dropout(0.2),
        Dense(128, 10),
    )


def draw(history: training.History, images: Any, labels: Any, predicted: Any, path: Path) -> None:
    """The learning curves, and the digits of the test set that the network got wrong."""
    wrong = np.flatnonzero(predicted != labels)[:12]
    figure = plt.figure(figsize=(13, 4.5), layout="constrained")
    curves, digits = figure.subfigures(1, 2, width_ratios=[3, 2])
    loss, accuracy = curves.subplots(1, 2)
    loss.plot(history["epoch"], history["loss"], label="training")
    loss.plot(history["epoch"], history["val_loss"], label="validation")
    loss.set(title="cross entropy", xlabel="epoch")
    loss.legend()
    accuracy.plot(history["epoch"], history["val_accuracy"], color="C1")
    accuracy.set(title="validation accuracy", xlabel="epoch")
    columns = max(2, int(np.ceil(np.sqrt(len(wrong)))))
    for i, axis in enumerate(digits.subplots(columns, columns, squeeze=False).flat):
        axis.axis("off")
        if i < len(wrong):
            axis.imshow(images[wrong[i]].reshape(8, 8), cmap="gray_r")
            axis.set_title(f"{labels[wrong[i]]}, read as {predicted[wrong[i]]}", fontsize=9)
    figure.suptitle(f"handwritten digits: {np.sum(predicted != labels)} of {len(labels)} test images misread")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, test, and leave the checkpoint, the CSV and the picture."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits-run"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    device = culux.gpu_device()
    train, validation, test = split_digits()
    model = make_model()
    print(model)
    print(
        f"device: {device.name}; {len(train[0])} training, {len(validation[0])} validation, {len(test[0])} test images"
    )

    steps = -(-len(train[0]) // BATCH) * options.epochs
    rule = optim.AdamW(optim.schedules.cosine(3e-3, steps), weight_decay=1e-2)
    objective = losses.CrossEntropyLoss(label_smoothing=0.05)
    ts = training.TrainState.create(options.seed, model, rule, device=device)
    ts, history = training.fit(
        objective,
        culux.DeviceIterator(device, batches(train, BATCH, rng=options.seed)),
        ts,
        epochs=options.epochs,
        validation=batches(validation, 256, rng=0, shuffle=False),
        metrics={"accuracy": training.accuracy},
        callbacks=[training.CSVLogger(options.out / "epochs.csv")],
        checkpoint=options.out / "checkpoint",
    )

    logits, _ = model(device(test[0]), ts.parameters, culux.test_mode(ts.states))
    predicted = culux.to_numpy(logits).argmax(axis=1)
    picture = options.out / "digits.png"
    draw(history, *test, predicted, picture)
    print(f"checkpoint and picture: {options.out}/")
    print(f"test accuracy: {np.mean(predicted == test[1]):.3f}")


if __name__ == "__main__":
    main()
