"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from culux.backends.cache import replace_file
from culux.errors import CheckpointError

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that, whatever happens, its name leads to the old content or to all of the new.

    A link is followed; the rest is `culux.backends.cache.replace_file`.

    Args:
        path: the file.
        data: its new content.

    Raises:
        CheckpointError: where it cannot be written (a full disk, no such folder, ...).
    """
    target = Path(os.path.realpath(path))
    try:
        replace_file(target, data)
    except OSError as error:
        kept = "; the file that was there is unchanged" if target.is_file() else ""
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}{kept}") from error
