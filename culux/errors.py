"""The errors of culux: what was expected, what came, where, and what to do.

Every error that culux raises on purpose is a `CuluxError` and also the built-in error that a Python
programmer would catch (`ValueError` for shapes, `TypeError` for kinds, ...). An error raised inside a
layer carries the layer's path in the model, all of it in `str(error)`:

    in layer_2 (Dense(128, 10)): expected x.shape[-1] == 128, got 64 (x has shape (32, 64))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "CheckError",
    "CheckpointError",
    "CuluxError",
    "DTypeError",
    "DeviceError",
    "DeviceMemoryError",
    "DifferentiationError",
    "EntryError",
    "FrozenError",
    "KernelError",
    "LayerError",
    "NonFiniteError",
    "ShapeError",
    "SpellingError",
]


class CuluxError(Exception):
    """Base of all errors that culux raises on purpose."""

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        where = _where(self)
        return f"in {where}: {message}" if where else message


class ShapeError(CuluxError, ValueError):
    """Shapes, lengths or tree structures that do not fit."""


class DTypeError(CuluxError, TypeError):
    """A dtype that an operation does not take."""


class DeviceError(CuluxError, RuntimeError):
    """A device that is not there, or arrays of two devices in one call."""


class DeviceMemoryError(DeviceError, MemoryError):
    """Memory of a device, or of the host, that ran out."""


class DifferentiationError(CuluxError, TypeError):
    """A derivative that does not exist or that culux has no rule for."""


class LayerError(CuluxError, TypeError):
    """A layer that breaks the layer contract, or a call that does."""


class CheckpointError(CuluxError, ValueError):
    """A checkpoint that is truncated, corrupt, foreign or does not fit."""


class KernelError(CuluxError, RuntimeError):
    """A CUDA kernel that does not compile, or a launch that was refused."""


class NonFiniteError(CuluxError, FloatingPointError):
    """A loss or a parameter that became infinite or no number."""


class CheckError(CuluxError, AssertionError):
    """A layer, primitive or backend that fails checks of `culux.testing`; the text lists all of them."""


class EntryError(CuluxError, KeyError, AttributeError):
    """An entry that a `Tree` does not have."""


class FrozenError(LayerError, AttributeError):
    """A write to a layer, which is frozen."""


class SpellingError(LayerError, AttributeError):
    """A method of another framework; the message has the culux form."""


_LOCATION = "_culux_location"


class _Location:
    """Where an exception came from: the innermost layer, and the names that lead to it.

    `owner` identifies the outermost layer so far and the parameters it was called with. Ids, not the objects: an
    exception that is kept must keep no arrays, least of all traced ones.
    """

    __slots__ = ("layer", "note", "owner", "path")

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.owner = (0, 0)
        self.path: list[str] = []
        self.note: str | None = None

    def __str__(self) -> str:
        return f"{'.'.join(self.path)} ({self.layer})" if self.path else self.layer


def _where(error: BaseException) -> str:
    location = getattr(error, _LOCATION, None)
    return str(location) if location is not None else ""


def is_located(error: BaseException) -> bool:
    """Whether an exception has come out of a layer and carries its path."""
    return hasattr(error, _LOCATION)


def locate(
    error: Exception,
    layer: object,
    ps: object,
    name_of: Callable[[int, int], str | None],
) -> None:
    """Record that `error` passed through `layer`, called with `ps`.

    The innermost layer is named by its constructor call; every layer further out adds the name under
    which it knows the one below, found by ``name_of(id(child), id(child_ps))``. A `CuluxError` shows the path
    in its text, any other exception in a note.
    """
    location: _Location | None = getattr(error, _LOCATION, None)
    if location is None:
        location = _Location(repr(layer))
        try:
            setattr(error, _LOCATION, location)
        except Exception:  # an exception of the user's that takes no attributes goes on as it is
            return
    elif location.owner[0] != id(layer):
        name = name_of(*location.owner)
        if name is not None:
            location.path.insert(0, name)
    location.owner = (id(layer), id(ps))
    if not isinstance(error, CuluxError):
        notes = getattr(error, "__notes__", [])
        if location.note in notes:
            notes.remove(location.note)
        location.note = f"in {location}"
        error.add_note(location.note)


def nearest(name: object, candidates: Iterable[str]) -> str:
    """The hint ``" (did you mean 'x'?)"`` for the candidate closest to `name`, or ``""``."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(str(name), list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


# What users of other frameworks write, and what culux calls it. One table for keywords, one for methods.
FOREIGN_KEYWORDS: Mapping[str, str] = {
    "lr": "learning_rate",
    "eps": "epsilon",
    "bias": "use_bias (True or False)",
    "in_features": "in_dims, the first argument: Dense(in_dims, out_dims)",
    "out_features": "out_dims, the second argument: Dense(in_dims, out_dims)",
    "num_features": "channels, the first argument: BatchNorm(channels)",
    "normalized_shape": "shape, the first argument: LayerNorm(shape)",
    "elementwise_affine": "affine",
    "rate": "p, the first argument: Dropout(p)",
    "prob": "p, the first argument: Dropout(p)",
    "track_running_stats": "track_stats",
    "embedding_dim": "dims: Embedding(num_embeddings, dims)",
    "num_channels": "channels, the first argument: GroupNorm(channels, groups)",
    "num_groups": "groups, the second argument: GroupNorm(channels, groups)",
    "norm_type": "p: LPPool(window, p=2)",
    "scale_factor": "scale: Upsample(scale=2)",
    "upscale_factor": "factor, the first argument: PixelShuffle(factor)",
    "in1_features": "in_dims, a pair: Bilinear((in1, in2), out_dims)",
    "hidden_size": "out_dims: LSTMCell(in_dims, out_dims)",
    "input_size": "in_dims: LSTMCell(in_dims, out_dims)",
    "embed_dim": "dims, the first argument: MultiHeadAttention(dims, num_heads=1)",
    "nheads": "num_heads",
    "nhead": "num_heads",
    "kdim": "key_dims",
    "vdim": "value_dims",
    "is_causal": "causal",
    "attention_dropout_probability": "dropout",
    "need_weights": "return_weights (True or False)",
    "max_seq_len": "max_sequence_length",
    "theta": "base",
    "weight_decay_rate": "weight_decay",
    "beta1": "betas=(beta1, beta2)",
    "beta2": "betas=(beta1, beta2)",
    "beta_1": "betas=(beta_1, beta_2)",
    "beta_2": "betas=(beta_1, beta_2)",
    "init_scale": "scale",
    "growth_factor": "growth",
    "backoff_factor": "backoff",
    "init_W": "init_weight",
    "kernel_init": "init_weight",
    "bias_init": "init_bias",
    "pad": "padding",
    "act": "activation",
}

FOREIGN_METHODS: Mapping[str, str] = {
    "eval": "a layer has no mode: call it with culux.test_mode(st)",
    "train": "a layer has no mode: call it with culux.train_mode(st), the default of setup",
    "parameters": "a layer holds no arrays: ps, st = culux.setup(rng, model); culux.tree.leaves(ps)",
    "named_parameters": "a layer holds no arrays: ps, st = culux.setup(rng, model); culux.tree.leaves_with_path(ps)",
    "state_dict": "a layer holds no arrays: save them with culux.serialization.save(path, culux.Tree(ps=ps, st=st))",
    "load_state_dict": "a layer holds no arrays: ps and st come from culux.serialization.load(path)",
    "buffers": "a layer holds no arrays: ps, st = culux.setup(rng, model); culux.tree.leaves(st)",
    "modules": "the sublayers by name are layer.children()",
    "named_modules": "the sublayers by name are layer.children()",
    "to": "a layer holds no arrays: move them with ps, st = device(ps), device(st)",
    "cuda": "a layer holds no arrays: move them with device = culux.gpu_device(); ps, st = device(ps), device(st)",
    "cpu": "a layer holds no arrays: move them with device = culux.cpu_device(); ps, st = device(ps), device(st)",
    "backward": "gradients come from a function: grads = culux.gradient(loss, ps)",
    "zero_grad": "gradients are values, nothing accumulates: grads = culux.gradient(loss, ps)",
    "requires_grad_": "what you pass to culux.gradient is differentiated; culux.optim.freeze keeps leaves fixed",
    "detach": "use culux.stop_gradient(x)",
    "numpy": "use culux.to_numpy(x) outside the differentiated function",
    "half": "convert trees: ps, st = culux.f16(ps), culux.f16(st)",
    "bfloat16": "convert trees: ps, st = culux.bf16(ps), culux.bf16(st)",
    "double": "convert trees: ps, st = culux.f64(ps), culux.f64(st)",
    "register_buffer": "return untrained arrays from initial_states(self, rng)",
    "forward": "call the layer: y, st = layer(x, ps, st)",
}


def check_keywords(name: str, keywords: Iterable[str], accepted: Iterable[str]) -> None:
    """Raise a `LayerError` for a keyword of another framework or a misspelt one.

    Args:
        name: what is being called, for the message.
        keywords: the keywords that came.
        accepted: the keywords that `name` takes.
    """
    known = list(accepted)
    for keyword in keywords:
        if keyword in known:
            continue
        culux_form = FOREIGN_KEYWORDS.get(keyword)
        if culux_form is not None and culux_form.split(" ")[0].rstrip(",:").split("=")[0] in known:
            raise LayerError(f"{name} takes no {keyword}=; culux calls it {culux_form}")
        raise LayerError(
            f"{name} takes no {keyword}={nearest(keyword, known)}; it takes {', '.join(known) or 'no keywords'}"
        )


def missing_attribute(owner: str, name: str, layers: Iterable[str] = ()) -> AttributeError:
    """The error for an attribute that `owner` lacks: the culux form where `name` is another framework's."""
    culux_form = FOREIGN_METHODS.get(name)
    if culux_form is not None:
        return SpellingError(f"{owner} has no .{name}(): {culux_form}")
    listed = ", ".join(layers)
    return AttributeError(f"{owner} has no attribute {name!r}" + (f"; its layers are: {listed}" if listed else ""))


def describe(value: Any) -> str:
    """A value in a few words for a message: `float32 array of shape (2, 3)`, `int 3`, `Dense(2, 4)`."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        kind = type(value).__name__
        kind = kind if kind in ("MaskedArray", "matrix", "Tensor", "Parameter") else "array"
        return f"{dtype} {kind} of shape {tuple(shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
