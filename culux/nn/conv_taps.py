"""The geometry of convolutions: what their arguments mean, and where a kernel's taps lie on an input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from culux.errors import LayerError, ShapeError, describe

__all__ = ["Lengths", "Padding", "Spec", "Taps", "resolve"]

Lengths = int | tuple[int, ...]
"""A number for every spatial axis, or one for all."""

Padding = int | str | tuple[int | tuple[int, int], ...]
"""A number, numbers or (before, behind) pairs, one per spatial axis; or "same" or "valid"."""


class Taps(NamedTuple):
    """Where the taps of a kernel lie on an input: one to three numbers each, but for the groups.

    Output i reads the input at ``i * stride + tap * dilation - before``; what is outside reads as 0.

    Attributes:
        size: the lengths of the input.
        kernel: the numbers of taps.
        stride: the steps between outputs.
        dilation: the steps between taps.
        before: how far the first tap of the first output lies before the input; negative inside of it.
        out: the lengths of the output.
        groups: how many groups of channels there are.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    out: tuple[int, ...]
    groups: int

    @property
    def reach(self) -> tuple[int, ...]:
        """The lengths of what the taps read, padding included."""
        axes = zip(self.kernel, self.stride, self.dilation, self.out, strict=True)
        return tuple((out - 1) * s + (k - 1) * d + 1 for k, s, d, out in axes)

    def places(self) -> Iterator[tuple[slice, ...]]:
        """For every tap, in row-major order, where all outputs read it in what the taps reach."""
        for tap in itertools.product(*map(range, self.kernel)):
            axes = zip(tap, self.stride, self.dilation, self.out, strict=True)
            yield tuple(slice(t * d, t * d + s * (out - 1) + 1, s) for t, s, d, out in axes)

    def overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What the input and what the taps reach have in common, as slices of the input and of the reach."""
        own, reached = [], []
        for size, before, reach in zip(self.size, self.before, self.reach, strict=True):
            length = max(0, min(size, reach - before) - max(0, -before))
            own.append(slice(max(0, -before), max(0, -before) + length))
            reached.append(slice(max(0, before), max(0, before) + length))
        return tuple(own), tuple(reached)


class Spec(NamedTuple):
    """A convolution's arguments, one number per spatial axis, whatever the input.

    Attributes:
        kernel: the numbers of taps.
        stride: the steps between windows.
        dilation: the steps between taps.
        borders: the padding before and behind each axis.
        groups: how many groups of channels there are.
        extra: a transposed convolution's output padding.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    groups: int
    extra: tuple[int, ...]

    def taps(self, function: str, shape: tuple[int, ...], mode: str = "zeros") -> Taps:
        """The taps of a convolution of an input of this shape, padded in this mode.

        Raises:
            ShapeError: for a shape that the kernel does not fit, or that has too little to fill its border with.
        """
        size = self._size(function, shape)
        axes = zip(size, self.kernel, self.stride, self.dilation, self.borders, strict=True)
        out = tuple((n + sum(border) - (k - 1) * d - 1) // s + 1 for n, k, s, d, border in axes)
        if min(out) < 1:
            spread = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
            raise ShapeError(
                f"{function}: expected spatial axes of at least {spread} with the padding {self.borders}, got {size} "
                f"(x has shape {shape})"
            )
        for n, border in zip(size, self.borders, strict=True):
            limit = {"reflect": n - 1, "circular": n}.get(mode, max(border))
            if max(border) > limit:
                raise ShapeError(
                    f'{function}: expected padding of at most {limit} for padding_mode="{mode}" and an axis of {n}, '
                    f"got {border} (x has shape {shape})"
                )
        before = tuple(low for low, _ in self.borders)
        return Taps(size, self.kernel, self.stride, self.dilation, before, out, self.groups)

    def transposed_taps(self, function: str, shape: tuple[int, ...]) -> Taps:
        """The taps of the convolution whose transpose takes an input of this shape: `size` is the transpose's output.

        Raises:
            ShapeError: for a shape that has no output.
        """
        size = self._size(function, shape)
        axes = zip(size, self.kernel, self.stride, self.dilation, self.borders, self.extra, strict=True)
        out = tuple((n - 1) * s + (k - 1) * d + 1 - sum(border) + more for n, k, s, d, border, more in axes)
        if min(out) < 1:
            raise ShapeError(
                f"{function}: expected an output of at least 1 along every spatial axis, got {out} with the padding "
                f"{self.borders} (x has shape {shape})"
            )
        before = tuple(low for low, _ in self.borders)
        return Taps(out, self.kernel, self.stride, self.dilation, before, size, self.groups)

    def _size(self, function: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != len(self.kernel) + 2:
            raise ShapeError(
                f"{function}: expected x of shape (batch, channels, *spatial) with {len(self.kernel)} spatial "
                f"{'axis' if len(self.kernel) == 1 else 'axes'} for the kernel {self.kernel}, got {shape}"
            )
        if not all(shape[2:]):
            raise ShapeError(f"{function}: expected spatial axes that are not empty, got {shape}")
        return shape[2:]


def resolve(
    function: str,
    kernel: tuple[int, ...],
    stride: Lengths,
    padding: Padding,
    dilation: Lengths,
    groups: int,
    extra: Lengths | None = None,
) -> Spec:
    """The arguments of a convolution with one number per axis; `extra` is the output padding of a transposed one.

    Raises:
        LayerError: for arguments that are none.
    """
    axes = len(kernel)
    strides = _numbers(function, "stride", stride, axes, 1)
    dilations = _numbers(function, "dilation", dilation, axes, 1)
    if not _is_int(groups, 1):
        raise LayerError(f"{function}: expected groups to be a positive int, got {describe(groups)}")
    extras = _numbers(function, "output_padding", 0 if extra is None else extra, axes, 0)
    if any(e and e >= max(s, d) for e, s, d in zip(extras, strides, dilations, strict=True)):
        raise LayerError(
            f"{function}: expected output_padding to be smaller than the stride or the dilation, got {extras} for "
            f"{strides} and {dilations}"
        )
    spread = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if padding == "same":
        borders = _same(function, spread, strides, transposed=extra is not None)
    else:
        borders = _borders(function, 0 if padding == "valid" else padding, axes)
    return Spec(kernel, strides, dilations, borders, groups, extras)


def _same(
    function: str, spread: tuple[int, ...], stride: tuple[int, ...], *, transposed: bool
) -> tuple[tuple[int, int], ...]:
    """The borders for an output of the input's lengths, times the stride in a transposed convolution."""
    if not transposed and any(s != 1 for s in stride):
        raise LayerError(f'{function}: padding="same" needs stride=1, got {stride}; give the padding as a number')
    totals = [n - s for n, s in zip(spread, stride, strict=True)]
    if min(totals) < 0:
        raise LayerError(
            f'{function}: padding="same" needs a kernel that covers the stride, got {spread} for the stride {stride}'
        )
    return tuple((total // 2, total - total // 2) for total in totals)


def _borders(function: str, padding: Any, axes: int) -> tuple[tuple[int, int], ...]:
    given = (padding,) * axes if _is_int(padding, 0) else padding
    if isinstance(given, tuple | list) and len(given) == axes:
        pairs = [(side, side) if _is_int(side, 0) else side for side in given]
        if all(isinstance(p, tuple | list) and len(p) == 2 and all(_is_int(n, 0) for n in p) for p in pairs):
            return tuple((low, high) for low, high in pairs)
    raise LayerError(
        f"{function}: expected padding to be an int of at least 0, a tuple of {axes} of them or of (before, behind) "
        f'pairs, "same" or "valid", got {describe(padding)}'
    )


def _numbers(function: str, name: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    given = (value,) * axes if _is_int(value, least) else value
    if isinstance(given, tuple | list) and len(given) == axes and all(_is_int(n, least) for n in given):
        return tuple(given)
    raise LayerError(
        f"{function}: expected {name} to be an int of at least {least} or a tuple of {axes} of them, one per spatial "
        f"axis, got {describe(value)}"
    )


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
