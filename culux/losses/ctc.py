"""Connectionist temporal classification: the likelihood of a sequence of labels of which no places are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff import primitive, stop_gradient
from culux.autodiff.tracer import Pullback, Tracer
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError, describe
from culux.losses.checks import require_arrays, require_reduction
from culux.nn import log_softmax, logsumexp
from culux.nn.cross_entropy import reduced
from culux.nn.fused import decompose, narrow, require_float, widen
from culux.nn.softmax import require_integers

__all__ = ["ctc"]

# The logarithm of probability 0: finite, so that differences of two are no NaN.
IMPOSSIBLE = -1e30


def ctc(
    logits: Array,
    labels: Array,
    lengths: Array | Sequence[int] | None = None,
    label_lengths: Array | Sequence[int] | None = None,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> Array:
    """``-log p(labels | logits)``, summed over all alignments: paths that read as the labels.

    A path has one class per step; it reads as its classes without repetitions and blanks. The mean is that of the
    losses divided by the numbers of labels (as torch's). Logarithms of probabilities are logits too. Graves et al.,
    "Connectionist temporal classification", 2006.

    Args:
        logits: (N, time, C), float.
        labels: (N, S), integers; places with a negative number, at the end of a row, are no labels.
        lengths: how many steps each example has, N integers from 1; all of them if None.
        label_lengths: how many labels each example has, N integers; all that are not negative if None.
        blank: the class between labels.
        zero_infinity: 0 instead of infinity where there are too few steps for the labels; no gradient either way.
        reduction: "mean", "sum", or "none" for (N,).

    Raises:
        ShapeError: for shapes that do not fit, labels that are no classes or the blank, or lengths out of range
            (looked for on the host only), or the mean of an empty batch.
        DTypeError: for logits that are no floats, or labels or lengths that are no integers.
        LayerError: for an unknown reduction, or a blank that is no class.
    """
    _check(logits, labels, blank, reduction)
    counts = _lengths("label_lengths", label_lengths, (labels >= 0).sum(axis=1), 0, labels.shape[1])
    steps = _lengths("lengths", lengths, counts * 0 + logits.shape[1], 1, logits.shape[1])
    xp = namespace_of(labels)
    inside = xp.arange(labels.shape[1]) < counts[:, None]
    _check_labels(labels, inside, logits.shape[2], blank)
    states = _with_blanks(xp.where(inside, labels, blank), blank)
    before = xp.concatenate([xp.full_like(states, blank, shape=(len(states), 2)), states], axis=1)
    skips = (states != blank) & (states != before[:, : states.shape[1]])  # no blank between two different labels
    places, last = xp.arange(states.shape[1]), 2 * counts[:, None]
    ends = (places == last) | (places == last - 1)
    emitted = _emitted(log_softmax(widen(logits), axis=-1), states)
    losses = -_log_likelihood(emitted, skips, ends, steps)
    losses = cnp.where(stop_gradient(losses) < -0.5 * IMPOSSIBLE, losses, 0.0 if zero_infinity else np.inf)
    if reduction == "mean":
        losses = losses / xp.maximum(counts, 1).astype(stop_gradient(losses).dtype)
    return narrow(reduced(losses, reduction), logits)


def _with_blanks(labels: Array, blank: int) -> Array:
    """The labels with blanks around and between them, (N, 2 S + 1)."""
    xp = namespace_of(labels)
    rows, count = labels.shape
    between = xp.stack([labels, xp.full_like(labels, blank)], axis=2).reshape(rows, 2 * count)
    return xp.concatenate([xp.full_like(labels, blank, shape=(rows, 1)), between], axis=1)


def _emitted(log_p: Array, states: Array) -> Array:
    """The logarithm of the probability of each state's class, (N, time, states)."""
    shape = (len(states), log_p.shape[1], states.shape[1])
    return cnp.take_along_axis(log_p, namespace_of(states).broadcast_to(states[:, None, :], shape), axis=2)


@primitive(composite=True)
def _log_likelihood(emitted: Array, skips: Array, ends: Array, steps: Array) -> Array:
    """The logarithm of the probability of all paths; the portable form.

    Args:
        emitted: (N, time, states), the logarithm of the probability of each state's class.
        skips: (N, states), whether the state before may be left out.
        ends: (N, states), where paths end.
        steps: (N,), the lengths.
    """
    return logsumexp(cnp.where(ends, _prefixes(emitted, skips, steps)[-1], IMPOSSIBLE), axis=1)


@_log_likelihood.rule
def _(needs: tuple[bool, ...], emitted: Array, skips: Array, ends: Array, steps: Array) -> tuple[Array, Pullback]:
    xp = namespace_of(emitted)
    prefixes = xp.stack(_prefixes(emitted, skips, steps), axis=1)
    total = logsumexp(xp.where(ends, prefixes[:, -1], IMPOSSIBLE), axis=1)

    def pullback(dy: Any) -> tuple[Any, None, None, None]:
        if type(dy) is Tracer:  # a derivative of this derivative is being taken
            slope = decompose(_log_likelihood, needs, (emitted, skips, ends, steps), {})[1](dy)[0]
            return slope, None, None, None
        both = prefixes + xp.stack(_suffixes(emitted, skips, ends, steps), axis=1)
        posterior = xp.exp(both - total[:, None, None])  # of being in a state at a step, given the labels
        inside = xp.arange(emitted.shape[1]) < steps[:, None]
        return dy[:, None, None] * xp.where(inside[:, :, None], posterior, 0), None, None, None

    return total, pullback


def _prefixes(emitted: Array, skips: Array, steps: Array) -> list[Array]:
    """The paper's forward variables at every step: log probabilities of the paths up to a state, with it."""
    xp = namespace_of(emitted)
    width = emitted.shape[2]
    alpha = xp.where(namespace_of(skips).arange(width) < 2, emitted[:, 0], IMPOSSIBLE)
    nowhere = _nowhere(emitted)
    found = [alpha]
    for step in range(1, emitted.shape[1]):
        padded = xp.concatenate([nowhere, nowhere, alpha], axis=1)
        moved = xp.logaddexp(alpha, padded[:, 1 : width + 1])
        moved = xp.logaddexp(moved, xp.where(skips, padded[:, :width], IMPOSSIBLE)) + emitted[:, step]
        alpha = xp.where((step < steps)[:, None], moved, alpha)
        found.append(alpha)
    return found


def _suffixes(emitted: Array, skips: Array, ends: Array, steps: Array) -> list[Array]:
    """The paper's backward variables at every step: log probabilities of the paths from a state on, without it."""
    xp = namespace_of(emitted)
    width = emitted.shape[2]
    nowhere = _nowhere(emitted)
    beta = xp.where(ends, nowhere * 0, IMPOSSIBLE)
    found = [beta]
    for step in range(emitted.shape[1] - 1, 0, -1):
        ahead = beta + emitted[:, step]
        skipped = xp.concatenate([xp.where(skips, ahead, IMPOSSIBLE), nowhere, nowhere], axis=1)
        moved = xp.logaddexp(ahead, xp.concatenate([ahead, nowhere], axis=1)[:, 1:])
        moved = xp.logaddexp(moved, skipped[:, 2 : width + 2])
        beta = xp.where((step < steps)[:, None], moved, beta)
        found.append(beta)
    return found[::-1]


def _nowhere(emitted: Array) -> Array:
    """A column of `IMPOSSIBLE`."""
    return stop_gradient(emitted)[:, 0, :1] * 0 + IMPOSSIBLE


def _check(logits: Array, labels: Array, blank: int, reduction: str) -> None:
    require_arrays("ctc", logits, labels, "labels")
    require_float("ctc", logits, "logits")
    require_integers("ctc", labels)
    shape, labels_shape = tuple(logits.shape), tuple(labels.shape)
    if len(shape) != 3 or not shape[1]:
        raise ShapeError(f"ctc: expected logits of shape (N, time, C) with at least one step, got {shape}")
    if len(labels_shape) != 2 or labels_shape[0] != shape[0]:
        raise ShapeError(f"ctc: expected labels of shape ({shape[0]}, S), got {labels_shape}; a shorter row ends in -1")
    if not 0 <= blank < shape[2]:
        raise LayerError(f"ctc: expected blank from 0 to {shape[2] - 1} ({shape[2]} classes), got {blank}")
    require_reduction("ctc", reduction, logits, shape[:1])


def _lengths(name: str, given: Any, default: Array, least: int, most: int) -> Array:
    """The lengths where the labels are, in the form of `default`, which stands for None."""
    if given is None:
        return default
    if not hasattr(given, "dtype"):
        backend = backend_of(default)
        given = backend.from_host(np.asarray(given), backend.place_of(default).index)
    require_integers(f"ctc with {name}", given)
    if tuple(given.shape) != tuple(default.shape):
        raise ShapeError(f"ctc: expected {name} of shape {tuple(default.shape)}, got {describe(given)}")
    if type(given) is np.ndarray and given.size and (given.min() < least or given.max() > most):
        raise ShapeError(f"ctc: expected {name} from {least} to {most}, got {int(given.min())} to {int(given.max())}")
    return given


def _check_labels(labels: Array, inside: Array, classes: int, blank: int) -> None:
    """Raise a `ShapeError` for a label on the host that is the blank or no class."""
    if type(labels) is not np.ndarray:
        return
    positions = np.argwhere(inside & ((labels < 0) | (labels >= classes) | (labels == blank)))
    if len(positions):
        row, place = map(int, positions[0])
        raise ShapeError(
            f"ctc: expected labels from 0 to {classes - 1} ({classes} classes) other than the blank {blank}, got "
            f"{labels[row, place]} at labels[{row}, {place}]"
        )
