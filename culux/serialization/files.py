"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from culux.errors import CheckpointError

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that, whatever happens, its name leads to the old content or to all of the new.

    The bytes go to a temporary file in the same folder, to the disk, and under the name in one step. A link
    is followed; the mode is the umask's.

    Args:
        path: the file.
        data: its new content.

    Raises:
        CheckpointError: where it cannot be written (a full disk, no such folder, ...).
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".culux-{secrets.token_hex(8)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        kept = "; the file that was there is unchanged" if target.is_file() else ""
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}{kept}") from error


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk; only POSIX can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
