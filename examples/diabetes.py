"""Predict how diabetes progresses, on scikit-learn's data of 442 patients: regression with early stopping.

    python examples/diabetes.py [--epochs 300] [--seed 0] [--out diabetes-run]

So few rows leave a network little to find that a linear model does not: a ridge regression on the same rows is
printed beside it. Leaves in the output folder the best train state, and a picture with the learning curves and
the predictions. Takes the GPU if there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV

import culux
from culux import Chain, Dense, Dropout, losses, optim, swish, training
from culux.data import batches

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 32
SPLIT_SEED = 2026


def split_patients() -> tuple[Any, Any, Any]:
    """The patients as (10 features, progression after a year): 264 for training, 88 for validation, 90 for the test."""
    features, progression = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(features))
    test, validation, train = np.split(order, [90, 90 + 88])
    return tuple((features[rows], progression[rows, None]) for rows in (train, validation, test))


def standardise(values: Any, like: Any) -> Any:
    """Values with the mean and the standard deviation of `like` made 0 and 1, in float32."""
    return ((values - like.mean(axis=0)) / like.std(axis=0)).astype(np.float32)


def make_model() -> culux.Layer:
    """The network: 10-32-32-1."""
    return Chain(
        hidden_1=Dense(10, 32, swish),
        dropout_1=Dropout(0.2),
        hidden_2=Dense(32, 32, swish),
        dropout_2=Dropout(0.2),
        head=Dense(32, 1),
    )


def scores(predicted: Any, truth: Any) -> str:
    """The root of the mean squared error, and the share of the variance that is explained, R2."""
    squared = np.mean((predicted - truth) ** 2)
    return f"RMSE {np.sqrt(squared):.1f}, R2 {1 - squared / truth.var():.3f}"


def draw(history: training.History, truth: Any, predictions: dict[str, Any], path: Path) -> None:
    """The learning curves, and for each model its predictions against the truth."""
    figure, (curves, *scatters) = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    best = int(np.argmin(history["val_loss"]))
    curves.plot(history["epoch"], history["loss"], label="training, with dropout")
    curves.plot(history["epoch"], history["val_loss"], label="validation")
    curves.axvline(history["epoch"][best], color="grey", linestyle=":", label="the epoch that is kept")
    curves.set(title="mean squared error, standardised", xlabel="epoch", ylim=(0, 1.2))
    curves.legend()
    ends = [truth.min(), truth.max()]
    for axis, (name, predicted) in zip(scatters, predictions.items(), strict=True):
        axis.plot(ends, ends, color="grey", linestyle=":")
        axis.scatter(truth, predicted, s=14, alpha=0.7)
        axis.set(title=f"{name}: {scores(predicted, truth)}", xlabel="progression", ylabel="predicted", ylim=ends)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, test beside a ridge regression, and leave the train state and the picture."""
    parser = argparse.ArgumentParser(description="Predict how diabetes progresses.")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("diabetes-run"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    device = culux.gpu_device()
    train, validation, test = split_patients()
    ready = [tuple(map(standardise, part, train)) for part in (train, validation, test)]
    model = make_model()
    print(model)
    sizes = [len(progression) for _, progression in (train, validation, test)]
    print(f"device: {device.name}; patients for training, validation, test: {sizes}")

    ts = training.TrainState.create(options.seed, model, optim.AdamW(1e-3, weight_decay=0.1), device=device)
    best = options.out / "best.safetensors"
    ts, history = training.fit(
        losses.MSELoss(),
        culux.DeviceIterator(device, batches(ready[0], BATCH, rng=options.seed)),
        ts,
        epochs=options.epochs,
        validation=batches(ready[1], 256, rng=0, shuffle=False),
        callbacks=[training.BestCheckpoint(best), training.EarlyStopping(patience=40)],
    )
    ts = culux.serialization.load(best, like=ts)

    y, _ = model(device(ready[2][0]), ts.parameters, culux.test_mode(ts.states))
    network = culux.to_numpy(y) * train[1].std() + train[1].mean()
    # RidgeCV chooses its penalty by leaving rows out one by one, so that it also learns from the validation rows.
    known = [np.concatenate(parts) for parts in zip(*ready[:2], strict=True)]
    ridge = RidgeCV(np.logspace(-2, 4, 50)).fit(*known).predict(ready[2][0]).reshape(-1, 1)
    predictions = {"network": network, "ridge regression": ridge * train[1].std() + train[1].mean()}
    draw(history, test[1], predictions, options.out / "diabetes.png")
    print(f"best train state and picture: {options.out}/")
    print("; ".join(f"{name}: {scores(predicted, test[1])}" for name, predicted in predictions.items()))


if __name__ == "__main__":
    main()
