"""`diff_devices`: the first layer whose results on the CPU and on another device part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux import tree
from culux.core.fields import is_layer, untraced
from culux.core.watch import Watcher, watching
from culux.devices import Device, cpu_device, gpu_device, to_numpy
from culux.errors import LayerError, describe

__all__ = ["DeviceDifference", "diff_devices"]

_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # relative to the largest value


@dataclass(frozen=True)
class DeviceDifference:
    """Where the results on two devices part; ``print`` says it in a line.

    Attributes:
        path: the names that lead to the layer, joined by dots; empty for the outermost.
        layer: the layer as it is written; ``"the result"`` where all layers agree and what `f` returns does not.
        leaf: which leaf of its result, the path in ``{"y": y, "st": st}``, or in the result of `f`.
        index: of the element that differs most.
        values: that element on the CPU and on the device.
        error: how far they lie apart, relative to the largest value on the CPU.
        tolerance: what would have been let pass.
        devices: the names of the two devices.
    """

    path: str
    layer: str
    leaf: str
    index: tuple[int, ...]
    values: tuple[Any, Any]
    error: float
    tolerance: float
    devices: tuple[str, str]

    def __str__(self) -> str:
        where = f"{self.path} ({self.layer})" if self.path else self.layer
        place = f"{self.leaf or 'the value'}{list(self.index) if self.index else ''}"
        one, other = (f"{value:.6g} on {name}" for value, name in zip(self.values, self.devices, strict=True))
        return (
            f"{where}: {place} is {one} and {other}, {self.error:.2g} of the largest value apart, "
            f"where {self.tolerance:.2g} is let pass; what came before agrees"
        )


def diff_devices(
    f: Callable[..., Any], *args: Any, device: Device | None = None, tolerance: float | None = None
) -> DeviceDifference | None:
    """Call ``f(*args)`` on the CPU and on a GPU, and find the first layer whose results part.

    Layers are compared in the order in which their calls end, y and states; then what `f` returns, gradients too. The
    arrays must come by `args`, as `f` gets them moved; layers among `args` stay as they are.

    Args:
        f: any function that calls layers: ``lambda x, ps: model(x, ps, st)[0]``, or one that takes a gradient.
        *args: its arguments: trees of arrays, and layers.
        device: the other device; ``culux.gpu_device(force=True)`` if None.
        tolerance: how far values may lie apart, relative to the largest of an array; if None 1e-10 for float64, 1e-4
            for float32, 2e-2 for float16, 1e-1 for bfloat16. Integers must be equal.

    Returns:
        The first difference, or None where there is none.

    Raises:
        DeviceError: where there is no GPU.
        LayerError: where `f` calls other layers on the two devices, or returns another tree.
    """
    there = gpu_device(force=True) if device is None else device
    here = cpu_device()
    names = here.name, there.name
    one, other = (_record(f, args, place) for place in (here, there))
    for (path, layer, result), (other_path, other_layer, other_result) in zip(one, other, strict=False):
        if (path, layer) != (other_path, other_layer):
            raise LayerError(
                f"expected f to call the same layers on {names[0]} and {names[1]}, got {path or layer} and "
                f"{other_path or other_layer}; f must not depend on where its arrays are"
            )
        found = _first(result, other_result, tolerance, (path, layer), names)
        if found is not None:
            return found
    if len(one) != len(other):
        raise LayerError(
            f"expected f to call the same layers on {names[0]} and {names[1]}, got {len(one) - 1} and "
            f"{len(other) - 1} calls; f must not depend on where its arrays are"
        )
    return None


def _record(f: Callable[..., Any], args: tuple[Any, ...], device: Device) -> list[tuple[str, str, Any]]:
    """What every layer returns on a device, on the host, and at last what `f` does."""
    recorder = _Recorder()
    with watching(recorder):
        result = f(*(arg if is_layer(arg) else device(arg) for arg in args))
    return [*recorder.results, ("", "the result", _on_host(result))]


class _Recorder(Watcher):
    """Notes what every call of a layer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, str, Any]] = []

    def after(self, result: Any) -> None:
        """A call ends."""
        y, st = result
        self.results.append((self.path, repr(self.layers[-1][0]), _on_host({"y": y, "st": st})))


def _on_host(values: Any) -> Any:
    return to_numpy(tree.map(untraced, values))


def _first(
    one: Any, other: Any, tolerance: float | None, where: tuple[str, str], names: tuple[str, str]
) -> DeviceDifference | None:
    """The first leaf of two results that differs."""
    leaves, others = dict(tree.leaves_with_path(one)), dict(tree.leaves_with_path(other))
    if leaves.keys() != others.keys():
        raise LayerError(
            f"expected {where[0] or where[1]} to return the same tree on {names[0]} and {names[1]}, got "
            f"{', '.join(leaves) or 'a leaf'} and {', '.join(others) or 'a leaf'}"
        )
    for leaf, value in leaves.items():
        a, b = np.asarray(value), np.asarray(others[leaf])
        if a.shape != b.shape or a.dtype != b.dtype:
            raise LayerError(
                f"expected {where[0] or where[1]} to return {leaf or 'the value'} of the same shape and dtype on "
                f"{names[0]} and {names[1]}, got {describe(a)} and {describe(b)}"
            )
        allowed = _TOLERANCE.get(a.dtype.name, 0.0) if tolerance is None else tolerance
        found = _worst(a, b)
        if found is not None and found[1] > allowed:
            index, error = found
            return DeviceDifference(*where, leaf, index, (a[index], b[index]), error, allowed, names)
    return None


def _worst(a: np.ndarray, b: np.ndarray) -> tuple[tuple[int, ...], float] | None:
    """The index of the elements that differ most, and by how much of the largest finite value."""
    if a.dtype.kind not in "biufV" or not a.size:  # bfloat16 is of kind V
        return None
    wide, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(wide - other)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))  # infinities of one sign agree
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(apart)), a.shape))
    largest = np.max(np.abs(wide), initial=0.0, where=np.isfinite(wide))
    return index, float(apart[index] / (largest or 1.0))
