"""Train a small transformer to write like Python's reference manual, one character at a time.

    python examples/transformer.py [--epochs 6] [--seed 0] [--text FILE] [--out transformer-run]

The text is the one that `help()` shows for keywords and topics, or that of a file. Prints bits per character beside
those of tables of counts, and a text that the network wrote. Leaves in the output folder a picture with the learning
curves and with what the heads attend to. Takes the GPU if there is one.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import culux
from culux import Chain, Dense, Dropout, Embedding, MultiHeadAttention, RMSNorm, SkipConnection, losses, optim, training
from culux.data import batches

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH, LENGTH, DIMS, HEADS = 32, 64, 64, 4
PROMPT = "The assignment statement "


def read_text(file: Path | None) -> str:
    """The text of `file`; else Python's manual, or where an installation lacks that, sources of Python's library."""
    if file is not None:
        return file.read_text(encoding="utf-8")
    try:
        from pydoc_data.topics import topics
    except ImportError:
        print("there is no pydoc_data.topics here; the text is the source of some of Python's own modules")
        sources = sorted(Path(argparse.__file__).parent.glob("[ab]*.py"))
        return "\n".join(source.read_text(encoding="utf-8") for source in sources)
    return "\n\n".join(topics.values())


def stretches(ids: Any) -> tuple[Any, Any]:
    """The text in parts (N, LENGTH), and for every character the one after it."""
    count = (len(ids) - 1) // LENGTH
    return tuple(ids[start:][: count * LENGTH].reshape(count, LENGTH) for start in (0, 1))


class Embedded(culux.ContainerLayer):
    """A vector for every character, to which that of its position is added."""

    character: culux.Layer
    position: culux.Layer

    def forward(self, m: Any, ids: Any) -> Any:
        """Vectors (batch, length, dims) of characters (batch, length)."""
        return m.character(ids) + m.position(culux.array_namespace(ids).arange(ids.shape[1]))


def block() -> culux.Layer:
    """Attention to the characters so far, then a network for each of them; both are added to what comes in."""
    heads = MultiHeadAttention(DIMS, num_heads=HEADS, causal=True)
    attention = Chain(norm=RMSNorm(DIMS), heads=heads, dropout=Dropout(0.1))
    network = Chain(RMSNorm(DIMS), Dense(DIMS, 4 * DIMS, culux.gelu), Dense(4 * DIMS, DIMS), Dropout(0.1))
    return Chain(attention=SkipConnection(attention, operator.add), network=SkipConnection(network, operator.add))


def make_model(characters: int) -> culux.Layer:
    """The network: from characters (batch, length) to scores of the next one (batch, length, characters)."""
    embedded = Embedded(Embedding(characters, DIMS), culux.SinusoidalPositionalEmbedding(DIMS, scale=1.0))
    return Chain(embedded=embedded, block_1=block(), block_2=block(), norm=RMSNorm(DIMS), head=Dense(DIMS, characters))


def objective(layer: culux.Layer, ps: Any, st: Any, batch: Any) -> tuple[Any, Any, Any]:
    """The cross entropy of the next characters; to be shown, the same in bits."""
    ids, following = batch
    scores, st = layer(ids, ps, st)
    loss = losses.cross_entropy(scores.reshape(-1, scores.shape[-1]), following.reshape(-1))  # classes along axis 1
    return loss, st, {"bits": loss / math.log(2)}


def bits_by_counting(train: Any, validation: Any, characters: int) -> tuple[float, float]:
    """Bits per character of `validation`, from how often characters, and pairs of them, are in `train`."""
    pairs = np.ones((characters, characters))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    alone = pairs.sum(axis=0) / pairs.sum()
    after = pairs / pairs.sum(axis=1, keepdims=True)
    return -np.log2(alone[validation[1:]]).mean(), -np.log2(after[validation[:-1], validation[1:]]).mean()


def write(m: Any, device: culux.Device, ids: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """`ids` and `count` characters more, each drawn from what the network expects after the last LENGTH."""
    for _ in range(count):
        scores = culux.to_numpy(m(device(np.array([ids[-LENGTH:]]))))[0, -1] / 0.7  # below 1: likely ones more often
        odds = np.exp(scores - scores.max())
        ids = [*ids, int(rng.choice(len(odds), p=odds / odds.sum()))]
    return ids


def attention_of(ts: training.TrainState, ids: Any) -> Any:
    """The weights (heads, length, length) with which the second block attends to the characters so far."""
    ps, st = ts.parameters, culux.test_mode(ts.states)
    x, _ = ts.layer[:2](ids, ps, st)  # as far as the first block
    part, ps, st = ts.layer.block_2.attention.layers, ps.block_2.attention.layers, st.block_2.attention.layers
    x, _ = part.norm(x, ps.norm, st.norm)
    heads = dataclasses.replace(part.heads, return_weights=True)  # another layer, the same parameters
    (_, weights), _ = heads(x, ps.heads, st.heads)
    return culux.to_numpy(weights)[0]


def draw(history: training.History, counted: tuple[float, float], weights: Any, text: str, path: Path) -> None:
    """The learning curves, and what each head attends to in a text."""
    figure = plt.figure(figsize=(13, 7), layout="constrained")
    curves, heads = figure.subfigures(1, 2, width_ratios=[2, 3])
    axis = curves.subplots()
    axis.plot(history["epoch"], history["bits"], "o-", label="training, with dropout")
    axis.plot(history["epoch"], history["val_bits"], "o-", label="validation")
    axis.axhline(counted[0], color="grey", linestyle=":", label="counts of characters")
    axis.axhline(counted[1], color="grey", linestyle="--", label="counts of pairs")
    axis.set(title="bits per character", xlabel="epoch", xticks=history["epoch"], ylim=(0, None))
    axis.legend()
    heads.suptitle("what the heads of the second block attend to")
    for axis, weight in zip(heads.subplots(2, 2).flat, weights, strict=True):
        axis.imshow(weight, cmap="Blues", vmin=0)
        for set_ticks in (axis.set_xticks, axis.set_yticks):
            set_ticks(range(len(text)), text, family="monospace", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, write, and leave the picture."""
    parser = argparse.ArgumentParser(description="Train a transformer on the characters of a text.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path, default=Path("transformer-run"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    device = culux.gpu_device()
    alphabet, ids = np.unique(list(read_text(options.text)), return_inverse=True)
    train, validation = np.split(ids, [len(ids) * 9 // 10])
    model = make_model(len(alphabet))
    print(f"device: {device.name}; {culux.parameter_length(model)} parameters, {len(alphabet)} different characters")
    print(f"characters for training, validation: {[len(train), len(validation)]}")

    data = batches(stretches(train), BATCH, rng=options.seed)
    steps = len(data) * options.epochs
    rule = optim.AdamW(optim.schedules.warmup_cosine(4e-3, steps // 10, steps), weight_decay=0.05)
    ts = training.TrainState.create(options.seed, model, optim.chain(optim.clip_norm(1.0), rule), device=device)
    checks = batches(stretches(validation), 128, rng=0, shuffle=False)
    ts, history = training.fit(
        objective, culux.DeviceIterator(device, data), ts, epochs=options.epochs, validation=checks
    )

    m = culux.StatefulLayer(model, ts.parameters, culux.test_mode(ts.states))
    prompt = [character for character in PROMPT if character in alphabet]
    start = np.searchsorted(alphabet, prompt).tolist()
    written = write(m, device, start, 400, np.random.default_rng(options.seed))
    print(f"\nwritten after {''.join(prompt)!r}:\n{''.join(alphabet[written])}\n")
    alone, pairs = bits_by_counting(train, validation, len(alphabet))
    weights = attention_of(ts, device(np.array([start])))
    draw(history, (alone, pairs), weights, "".join(prompt), options.out / "transformer.png")
    print(f"picture: {options.out}/")
    print(f"bits per character: {history['val_bits'][-1]:.2f}; counts of pairs {pairs:.2f}, of characters {alone:.2f}")


if __name__ == "__main__":
    main()
