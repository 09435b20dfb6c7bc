"""Train a convolutional network on scikit-learn's handwritten digits: residual blocks, and digits shifted at random.

    python examples/digits_cnn.py [--epochs 30] [--seed 0] [--out digits-cnn-run]

Takes the GPU if there is one. Leaves in the output folder the parameters, and a picture with the learning curves,
the first layer's kernels, what they see of a digit, and the misread digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits

import culux
from culux import BatchNorm, Chain, Conv, Dense, Dropout, FlattenLayer, MaxPool, losses, optim, relu, training
from culux.data import batches

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 64
SPLIT_SEED = 2026


def split_digits() -> tuple[Any, Any, Any]:
    """The 1797 digits as (images (N, 1, 8, 8), label): 72 % for training, 8 % for validation, 20 % for the test."""
    digits = load_digits()
    images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    test, validation, train = np.split(order, [len(order) // 5, len(order) // 5 + len(order) // 12])
    return tuple((images[rows], labels[rows]) for rows in (train, validation, test))


def shift(batch: Any, rng: np.random.Generator) -> Any:
    """The images of a batch, each one pixel to the left, one to the right, or where it was."""
    images, labels = batch
    padded = np.pad(images, [(0, 0), (0, 0), (0, 0), (1, 1)])
    columns = rng.integers(0, 3, (len(images), 1, 1, 1)) + np.arange(8)
    return np.take_along_axis(padded, columns, axis=3), labels


class Residual(culux.ContainerLayer):
    """A convolution that is added to its input: ``relu(x + norm(conv(x)))``."""

    conv: culux.Layer
    norm: culux.Layer

    def forward(self, m: Any, x: Any) -> Any:
        """Images of the shape of x."""
        return relu(x + m.norm(m.conv(x)))


def make_model() -> culux.Layer:
    """The network: 8x8 images with 32 channels, 4x4 images with 64, 10 classes."""
    width = 32

    def conv(channels_in: int, channels_out: int) -> culux.Layer:
        return Conv((3, 3), channels_in, channels_out, padding="same", use_bias=False)  # BatchNorm has the bias

    return Chain(
        conv_1=conv(1, width),
        norm_1=BatchNorm(width, relu),
        block_1=Residual(conv(width, width), BatchNorm(width)),
        pool=MaxPool((2, 2)),
        conv_2=conv(width, 2 * width),
        norm_2=BatchNorm(2 * width, relu),
        block_2=Residual(conv(2 * width, 2 * width), BatchNorm(2 * width)),
        flatten=FlattenLayer(),
        dropout=Dropout(0.4),
        head=Dense(2 * width * 16, 10),
    )


def show(part: Any, title: str, images: Any, names: Any = None) -> None:
    """Up to 16 images in a part of the picture."""
    part.suptitle(title)
    columns = int(np.clip(np.ceil(np.sqrt(len(images))), 2, 4))
    for i, axis in enumerate(part.subplots(columns, columns).flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i], cmap="gray_r")
            axis.set_title(names[i] if names else "", fontsize=9)


def draw(history: training.History, kernels: Any, seen: Any, misread: Any, path: Path) -> None:
    """The learning curves, the first layer's kernels and outputs, and the misread digits."""
    figure = plt.figure(figsize=(13, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2, 3])
    loss, accuracy = above.subplots(1, 2)
    loss.plot(history["epoch"], history["loss"], label="training, digits shifted, with dropout")
    loss.plot(history["epoch"], history["val_loss"], label="validation")
    loss.set(title="cross entropy", xlabel="epoch")
    loss.legend()
    accuracy.plot(history["epoch"], history["val_accuracy"], color="C1")
    accuracy.set(title="validation accuracy", xlabel="epoch")
    first, second, third = below.subfigures(1, 3)
    show(first, "kernels of the first layer", kernels)
    show(second, "a digit seen through them", seen)
    show(third, f"test digits that are misread: {len(misread[0])}", *misread)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, test, and leave the parameters and the picture."""
    parser = argparse.ArgumentParser(description="Train a convolutional network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits-cnn-run"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    device = culux.gpu_device()
    train, validation, test = split_digits()
    model = make_model()
    print(culux.summary(model, (BATCH, 1, 8, 8)))
    sizes = [len(labels) for _, labels in (train, validation, test)]
    print(f"device: {device.name}; digits for training, validation, test: {sizes}")

    steps = -(-len(train[0]) // BATCH) * options.epochs
    rule = optim.AdamW(optim.schedules.warmup_cosine(4e-3, steps // 10, steps), weight_decay=1e-2)
    ts = training.TrainState.create(options.seed, model, rule, device=device)
    ts, history = training.fit(
        losses.CrossEntropyLoss(label_smoothing=0.05),
        culux.DeviceIterator(device, batches(train, BATCH, rng=options.seed, transform=shift)),
        ts,
        epochs=options.epochs,
        validation=batches(validation, 256, rng=0, shuffle=False),
        metrics={"accuracy": training.accuracy},
    )
    culux.serialization.save(options.out / "parameters.safetensors", {"ps": ts.parameters, "st": ts.states})

    images, labels = test
    st = culux.test_mode(ts.states)
    logits, _ = model(device(images), ts.parameters, st)
    predicted = culux.to_numpy(logits).argmax(axis=1)
    seen, _ = model[:2](device(images[:1]), ts.parameters, st)  # the first two layers, which keep their names
    wrong = np.flatnonzero(predicted != labels)
    misread = images[wrong, 0], [f"{labels[i]}, read as {predicted[i]}" for i in wrong]
    kernels = culux.to_numpy(ts.parameters.conv_1.weight)[:, 0]
    draw(history, kernels, culux.to_numpy(seen)[0], misread, options.out / "digits_cnn.png")
    print(f"parameters and picture: {options.out}/")
    print(f"test accuracy: {np.mean(predicted == labels):.3f}")


if __name__ == "__main__":
    main()
