"""Batches on a device, the next one copied while the present one is computed with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Upload, is_float_array
from culux.devices.device import Device
from culux.devices.leaves import as_array, move
from culux.errors import LayerError, describe

__all__ = ["DeviceIterator"]

_ALIGNMENT = 256  # bytes; that of a CUDA allocation, so that every dtype and vector load may start here
_FORM = "culux.devices.DeviceIterator(culux.device('cpu'), batches)"


class DeviceIterator:
    """The batches of an iterable on a device.

    ``for x, y in DeviceIterator(device, batches): ...``. On a device with streams, batch k + 1 is gathered
    in page-locked memory and copied on a side stream while the consumer computes with batch k; its current
    stream waits for a batch before it is given. The copy of a batch is one transfer, whatever its tree.
    Batches are read one ahead: an exception from the iterable comes after the batches before it. Elsewhere
    it is ``device(batch)`` for each batch.

    Args:
        device: where the batches go, and the dtype of their floats.
        iterable: batches, trees of any kind; iterated anew each time if it can be.

    Raises:
        LayerError: for arguments of another kind or order.
    """

    def __init__(self, device: Device, iterable: Iterable[Any]) -> None:
        if not isinstance(device, Device):
            raise LayerError(f"expected a Device first, got {describe(device)}; {_FORM}")
        if not is_iterable(iterable):
            raise LayerError(f"expected an iterable of batches, got {describe(iterable)}; {_FORM}")
        self.device = device
        self.iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        if self.device.backend.has_streams:
            return self._one_ahead()
        stays = self.device.kind == "cpu" and self.device.dtype is None
        return map(self._on_host if stays else self.device, self.iterable)

    def _on_host(self, batch: Any) -> Any:
        """``device(batch)`` on the host; without a walk over the tree in the usual case, where all is there."""
        return batch if type(batch) is tuple and all(map(_is_on_host, batch)) else self.device(batch)

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]  # a TypeError where it has none

    def __repr__(self) -> str:
        return f"DeviceIterator({self.device!r}, {self.iterable!r})"

    def _one_ahead(self) -> Iterator[Any]:
        backend = self.device.backend
        uploads = (backend.upload(self.device.index), backend.upload(self.device.index))
        batches = iter(self.iterable)
        present: Callable[[], Any] | None = None
        try:
            for upload in itertools.cycle(uploads):
                following: Callable[[], Any] | None = None
                failure: Exception | None = None
                try:
                    following = self._start(next(batches), upload)
                except StopIteration:
                    pass
                except Exception as error:  # raised below, after the batch before it
                    failure = error
                if present is not None:
                    yield present()
                if failure is not None:
                    raise failure
                if following is None:
                    return
                present = following
        finally:
            for upload in uploads:
                upload.close()

    def _start(self, batch: Any, upload: Upload) -> Callable[[], Any]:
        """Send a batch off; the function that is returned waits for it and gives it."""
        dtype = self.device.dtype
        leaves: list[Any] = []
        staged: list[tuple[int, np.ndarray, np.dtype[Any], slice]] = []
        end = 0
        for position, (path, leaf) in enumerate(tree.leaves_with_path(batch)):
            array = as_array(path, leaf)
            leaves.append(leaf)
            if isinstance(array, np.ndarray):
                kept = dtype if dtype is not None and is_float_array(array) else array.dtype.newbyteorder("=")
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = start + array.size * kept.itemsize
                staged.append((position, array, kept, slice(start, end)))
            elif array is not None:
                leaves[position] = move(path, array, self.device.backend, self.device.index, dtype)
        host = upload.stage(end)
        for _position, array, kept, span in staged:
            np.copyto(host[span].view(kept).reshape(array.shape), array, casting="unsafe")
        there = upload.start()
        structure = tree.structure(batch)

        def finish() -> Any:
            upload.wait()
            for position, array, kept, span in staged:
                leaves[position] = there[span].view(kept).reshape(array.shape)
            return tree.unflatten(structure, leaves)

        return finish


def is_iterable(value: Any) -> bool:
    """Whether a value can be iterated, as far as its type tells: an iteration may be begun only once."""
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


def _is_on_host(leaf: Any) -> bool:
    return type(leaf) is np.ndarray and leaf.dtype.kind in "fiub"
