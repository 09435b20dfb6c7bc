"""Parts for ``(batch, channels, *spatial)``, one to three spatial axes."""

from __future__ import annotations

import itertools
import math
import operator
from functools import partial

import culux
from tests.architectures.part import (
    F,
    Part,
    activation,
    between,
    chain,
    choose,
    flag,
    scale,
    softplus,
    stateless,
    torch,
)
from tests.architectures.wrapping import normalized


def _spread(kernel, dilation):
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def _by_axis(function, axes):
    """torch's function for so many spatial axes."""
    return getattr(F, f"{function}{axes}d")


def _padded(x, borders, mode="constant", value=None):
    flat = [n for border in reversed(borders) for n in border]
    return F.pad(x, flat, mode=mode, value=value) if any(flat) else x


def _kernel(rng, spatial):
    """A kernel and its dilation that fit without padding."""
    dilation = tuple(between(rng, 1, 2 if n > 4 else 1) for n in spatial)
    return tuple(between(rng, 1, min(3, 1 + (n - 1) // d)) for n, d in zip(spatial, dilation, strict=True)), dilation


def conv(rng, shape, out=None, *, form="same"):
    """A Conv; of the form "same" one that keeps the lengths of the spatial axes."""
    channels, spatial = shape[1], shape[2:]
    groups = 1 if out else choose(rng, *[g for g in (1, 2, 3) if channels % g == 0])
    out = out or groups * between(rng, 1, 6 // groups)
    kernel, dilation = _kernel(rng, spatial)
    mode = choose(rng, "zeros", "circular", "reflect", "replicate")
    spread = _spread(kernel, dilation)
    padding = "same" if form == "same" else _padding(rng, spatial, form)
    borders = [((n - 1) // 2, n // 2) for n in spread] if padding == "same" else _pairs(padding, len(spatial))
    stride = 1 if padding == "same" else choose(rng, 1, 2, tuple(between(rng, 1, 2) for _ in spatial))
    turned, bias, (record, function) = flag(rng), flag(rng), activation(rng)
    layer = culux.Conv(
        kernel, channels, out, record, stride=stride, padding=padding, dilation=dilation, groups=groups,
        use_bias=bias, padding_mode=mode, cross_correlation=not turned,
    )  # fmt: skip

    def twin(x, ps, st, training):
        weight = ps["weight"].flip(tuple(range(2, len(shape)))) if turned else ps["weight"]
        x = _padded(x, borders, "constant" if mode == "zeros" else mode)
        y = _by_axis("conv", len(spatial))(x, weight, ps.get("bias"), stride, 0, dilation, groups)
        return function(y)

    return Part(layer, twin)


def _padding(rng, spatial, form):
    """A number, or (before, behind) pairs, that every mode of padding takes."""
    most = [min(2, n - 1) for n in spatial]
    if form == "number":
        return choose(rng, "valid", min(most), tuple(between(rng, 0, n) for n in most))
    return tuple((between(rng, 0, n), between(rng, 0, n)) for n in most)


def _pairs(padding, axes):
    each = (0,) * axes if padding == "valid" else padding if isinstance(padding, tuple) else (padding,) * axes
    return [p if isinstance(p, tuple) else (p, p) for p in each]


def conv_transpose(rng, shape, *, form):
    channels, spatial = shape[1], shape[2:]
    groups = choose(rng, *[g for g in (1, 2, 3) if channels % g == 0])
    out, axes = groups * between(rng, 1, 6 // groups), len(spatial)
    kernel, dilation = tuple(between(rng, 2, 3) for _ in spatial), tuple(between(rng, 1, 2) for _ in spatial)
    spread = _spread(kernel, dilation)
    stride = tuple(between(rng, 1, 2 if math.prod(spatial) < 40 else 1) for _ in spatial)
    extra = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    pairs = tuple((between(rng, 0, (n - 1) // 2), between(rng, 0, (n - 1) // 2)) for n in spread)
    padding = "same" if form == "same" else choose(rng, pairs, "valid", pairs)
    if padding == "same":
        extra = (0,) * axes
        borders = [((n - s) // 2, n - s - (n - s) // 2) for n, s in zip(spread, stride, strict=True)]
    else:
        borders = _pairs(padding, axes)
    turned, bias, (record, function) = flag(rng), flag(rng), activation(rng)
    layer = culux.ConvTranspose(
        kernel, channels, out, record, stride=stride, padding=padding, output_padding=extra, dilation=dilation,
        groups=groups, use_bias=bias, cross_correlation=not turned,
    )  # fmt: skip

    def twin(x, ps, st, training):
        weight = ps["weight"].flip(tuple(range(2, len(shape)))) if turned else ps["weight"]
        # All of it, then without its borders: torch cuts off as much on both sides.
        y = _by_axis("conv_transpose", axes)(x, weight, ps.get("bias"), stride, 0, extra, groups, dilation)
        inner = [slice(low, length - high) for (low, high), length in zip(borders, y.shape[2:], strict=True)]
        return function(y[(slice(None), slice(None), *inner)])

    return Part(layer, twin)


def batch_norm(rng, shape, *, track=True):
    return _channel_norm(rng, shape, culux.BatchNorm, F.batch_norm, track)


def instance_norm(rng, shape, *, track=False):
    return _channel_norm(rng, shape, culux.InstanceNorm, F.instance_norm, track) if math.prod(shape[2:]) > 1 else None


def _channel_norm(rng, shape, kind, function, track):
    affine, (record, activate) = flag(rng), activation(rng)
    epsilon, momentum = choose(rng, 1e-5, 1e-3), choose(rng, 0.1, 0.6)
    layer = kind(shape[1], record, affine=affine, track_stats=track, epsilon=epsilon, momentum=momentum)

    def twin(x, ps, st, training):
        mean, var = st.get("running_mean"), st.get("running_var")  # which torch writes to
        own = training or not track
        return activate(function(x, mean, var, ps.get("scale"), ps.get("bias"), own, momentum, epsilon))

    return Part(layer, twin)


def group_norm(rng, shape):
    groups = choose(rng, *[g for g in range(1, shape[1] + 1) if shape[1] % g == 0])
    if math.prod(shape[1:]) // groups < 3:
        return None
    affine, (record, function) = flag(rng), activation(rng)
    layer = culux.GroupNorm(shape[1], groups, record, affine=affine)
    return Part(
        layer, lambda x, ps, st, training: function(F.group_norm(x, groups, ps.get("scale"), ps.get("bias"), 1e-5))
    )


def _windows(rng, spatial, form=None):
    """A window, stride and padding, and the numbers that torch gets: borders, window and stride."""
    window = tuple(2 if form == "same" and n > 1 else between(rng, min(2, n), min(3, n)) for n in spatial)
    padding = "same" if form == "same" else choose(rng, "valid", tuple(w // 2 for w in window))
    stride = 1 if padding == "same" else choose(rng, None, 1, tuple(between(rng, 1, 2) for _ in spatial))
    borders = [((w - 1) // 2, w // 2) for w in window] if padding == "same" else _pairs(padding, len(spatial))
    return {"stride": stride, "padding": padding}, window, borders


def max_pool(rng, shape, *, form=None):
    options, window, borders = _windows(rng, shape[2:], form)
    dilation = (
        1 if form == "same" else tuple(2 if n > 4 and w > 1 else 1 for n, w in zip(shape[2:], window, strict=True))
    )
    pool = _by_axis("max_pool", len(window))
    return stateless(
        culux.MaxPool(window, dilation=dilation, **options),
        lambda x: pool(_padded(x, borders, value=-math.inf), window, options["stride"], 0, dilation),
    )


def mean_pool(rng, shape, *, form=None):
    options, window, borders = _windows(rng, shape[2:], form)
    pool = _by_axis("avg_pool", len(window))
    return stateless(culux.MeanPool(window, **options), lambda x: pool(_padded(x, borders), window, options["stride"]))


def _positive(rng, layer, function):
    """A part on softplus(x): roots of sums of powers that are 0 have no derivative."""
    return chain(
        rng,
        [
            stateless(culux.WrappedFunction(culux.softplus), softplus),
            stateless(layer, function),
        ],
    )


def lp_pool(rng, shape):
    options, window, borders = _windows(rng, shape[2:])
    p, pool = choose(rng, 1, 2.5, 3), _by_axis("lp_pool", len(window))
    layer = culux.LPPool(window, p=p, **options)
    lengths = window[0] if len(window) == 1 else window  # lp_pool1d takes a number only
    return _positive(rng, layer, lambda x: pool(_padded(x, borders), p, lengths, options["stride"]))


def _output_size(rng, spatial):
    return tuple(choose(rng, None, *range(max(1, n - 2), n + 2)) for n in spatial)


def _lengths(size, x):
    return [n if s is None else s for s, n in zip(size, x.shape[2:], strict=True)]


def adaptive_mean_pool(rng, shape):
    size = _output_size(rng, shape[2:])
    pool = _by_axis("adaptive_avg_pool", len(size))
    return stateless(culux.AdaptiveMeanPool(size), lambda x: pool(x, _lengths(size, x)))


def adaptive_max_pool(rng, shape):
    size = _output_size(rng, shape[2:])
    pool = _by_axis("adaptive_max_pool", len(size))
    return stateless(culux.AdaptiveMaxPool(size), lambda x: pool(x, _lengths(size, x)))


def adaptive_lp_pool(rng, shape):
    size, p = _output_size(rng, shape[2:]), choose(rng, 1.5, 3)

    def function(x):
        out = _lengths(size, x)
        windows = [
            [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for m, n in zip(out, x.shape[2:], strict=True)
        ]
        sums = [
            (x[(..., *[slice(*ends) for ends in place])] ** p).sum(dim=tuple(range(2, x.ndim)))
            for place in itertools.product(*windows)
        ]
        return torch.stack(sums, dim=-1).reshape(*x.shape[:2], *out) ** (1 / p)

    return _positive(rng, culux.AdaptiveLPPool(size, p=p), function)


def _gate(rng, shape, pool):
    """Every channel times a number made of all of it by a pool over everything and a Conv."""
    below = chain(rng, [pool, conv(rng, (*shape[:2], *[1] * (len(shape) - 2)), shape[1], form="same")])
    return Part(
        culux.SkipConnection(below.layer, operator.mul),
        lambda x, ps, st, training: x * below.twin(x, ps["layers"], st["layers"], training),
    )


def mean_gate(rng, shape):
    axes = tuple(range(2, len(shape)))
    return _gate(rng, shape, stateless(culux.GlobalMeanPool(), lambda x: x.mean(axes, keepdim=True)))


def max_gate(rng, shape):
    pool = _by_axis("adaptive_max_pool", len(shape) - 2)
    return _gate(rng, shape, stateless(culux.GlobalMaxPool(), lambda x: pool(x, 1)))


def lp_gate(rng, shape):
    axes, p = tuple(range(2, len(shape))), choose(rng, 1.5, 3)
    layer = culux.GlobalLPPool(p=p)
    return _gate(rng, shape, _positive(rng, layer, lambda x: (x**p).sum(axes, keepdim=True) ** (1 / p)))


def upsample(rng, shape, *, form):
    """An Upsample to the nearest; or linear, by a factor or with the corners in place."""
    spatial = shape[2:]
    mode = "nearest" if form == "nearest" else {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
    factor = tuple(choose(rng, 0.8, 1.5) if n > 1 else 1.5 for n in spatial)
    size = tuple(between(rng, max(1, n - 2), n + 2) for n in spatial)
    options = {"size": size} if form == "corners" else {"scale": factor}
    corners = form == "corners"
    layer = culux.Upsample(mode, align_corners=corners, **options)

    def function(x):
        return F.interpolate(
            x, size=options.get("size"), scale_factor=options.get("scale"), mode=mode,
            align_corners=None if mode == "nearest" else corners,
        )  # fmt: skip

    # Neighbours that are equal but for rounding are no maxima to look for: the Scale makes them differ.
    part = stateless(layer, function)
    return chain(rng, [part, scale(rng, layer.output_shape(shape))]) if mode == "nearest" else part


def pixel_shuffle(rng, shape):
    axes, factor = len(shape) - 2, 2 if len(shape) == 5 else between(rng, 2, 3)
    if math.prod(shape[2:]) > 40:
        return None
    channels = between(rng, 1, 2)

    def function(x):
        if axes == 2:
            return F.pixel_shuffle(x, factor)
        y = x.reshape(x.shape[0], channels, *[factor] * axes, *x.shape[2:])
        # Every spatial axis, then the part of the channels that is laid out along it.
        order = [place for axis in range(axes) for place in (2 + axes + axis, 2 + axis)]
        return y.permute(0, 1, *order).reshape(x.shape[0], channels, *[n * factor for n in x.shape[2:]])

    widened = conv(rng, shape, channels * factor**axes, form="same")
    return chain(rng, [widened, stateless(culux.PixelShuffle(factor), function)])


def weight_norm(rng, shape):
    return normalized(conv(rng, shape, between(rng, 2, 4), form="same"), "weight", choose(rng, 0, None, (0, 1)))


IMAGES = [
    *[partial(conv, form=form) for form in ("same", "number", "pairs")],
    *[partial(conv_transpose, form=form) for form in ("same", "pairs")],
    *[partial(kind, track=track) for kind in (batch_norm, instance_norm) for track in (True, False)],
    *[partial(kind, form=form) for kind in (max_pool, mean_pool) for form in ("same", "number")],
    *[partial(upsample, form=form) for form in ("nearest", "scale", "corners")],
    group_norm, lp_pool, adaptive_mean_pool, adaptive_max_pool, adaptive_lp_pool, mean_gate, max_gate, lp_gate,
    pixel_shuffle, weight_norm,
]  # fmt: skip
