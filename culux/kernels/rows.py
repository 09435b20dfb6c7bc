"""How the kernels over rows are launched: a warp for each short row, a block for each long one.

A long row stays in shared memory as far as `KEPT_BYTES` go, which every chip grants without asking: 12,032 elements
of float32; what is beyond is read again, and by then lies in the L2 cache.
"""

from __future__ import annotations

from typing import NamedTuple

from culux.backends import Array
from culux.kernels.launcher import MULTIPROCESSORS

__all__ = ["Rows", "column_launch", "row_launch"]

KEPT_BYTES = 47 * 1024  # of the 48 KiB; the rest is for the kernels' own variables
_LONGEST_SHORT = 256  # elements: 8 in the registers of each lane of a warp; with few registers, more warps at once
_LONGEST_IN_WARP = 1024  # elements: 32 in the registers of each lane
_WARPS = 4  # of a block, where each has its own row


class Rows(NamedTuple):
    """The launch over rows of one length.

    Attributes:
        kind: how rows are kept on the chip: "short", "warp" (both in the registers of a warp) or "block".
        group: threads of a row: 32, or the whole block.
        blocks: of the grid; they loop over the rows that are left.
        threads: of a block.
        kept: elements of a row that stay in shared memory.
        shared: the bytes for them.
    """

    kind: str
    group: int
    blocks: int
    threads: int
    kept: int
    shared: int


def row_launch(x: Array, rows: int, size: int, arrays: int = 1) -> Rows:
    """The launch over `rows` rows of `size` elements of the dtype of `x`, `arrays` of them kept beside each other."""
    most = MULTIPROCESSORS * 16
    if size <= _LONGEST_IN_WARP:
        return Rows("short" if size <= _LONGEST_SHORT else "warp", 32, min(-(-rows // _WARPS), most), 32 * _WARPS, 0, 0)
    threads = min(512, max(128, -(-size // 512) * 32))  # about 16 elements for each
    lanes = 16 // x.dtype.itemsize
    kept = min(-(-size // lanes) * lanes, KEPT_BYTES // arrays // 16 * lanes)
    return Rows("block", threads, min(rows, most), threads, kept, arrays * kept * x.dtype.itemsize)


def column_launch(columns: int, size: int) -> tuple[tuple[int], tuple[int, int]]:
    """Grid and block for columns of `size` elements: neighbours along x, and along y threads that share a column."""
    sharing = min(32, max(1, -(-size // 16)))  # about 16 elements or more for each
    across = max(32, 256 // sharing // 32 * 32)
    return (-(-columns // across),), (across, sharing)
