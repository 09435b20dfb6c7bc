"""The cache on disk: where its folders are, and how a file in one is written whole."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import warnings
from pathlib import Path

__all__ = ["cache_folder", "replace_file"]

_lock = threading.Lock()
_folders: dict[str, Path] = {}


def cache_folder(name: str) -> Path:
    """The folder `name` of the cache, made where it is missing.

    The cache is ``$CULUX_CACHE_DIR``, else ``$XDG_CACHE_HOME/culux``, else ``~/.cache/culux``. Where it
    cannot be written, the folder is a temporary one for this process, and one warning says so.

    Args:
        name: what is kept there, e.g. ``"kernels"``.
    """
    place = os.path.expanduser(os.path.join(_root(), name))
    with _lock:
        if place in _folders:
            return _folders[place]
        try:
            _folders[place] = _writable(place)
        except OSError as error:
            _folders[place] = Path(tempfile.mkdtemp(prefix=f"culux-{name}-"))
            warnings.warn(
                f"{place} cannot be written ({error}); {_folders[place]} takes its place for this process: "
                "set CULUX_CACHE_DIR to a folder that can be written to keep what is cached",
                stacklevel=2,
            )
        return _folders[place]


def _root() -> str:
    xdg = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.environ.get("CULUX_CACHE_DIR") or os.path.join(xdg, "culux")


def _writable(place: str) -> Path:
    if place.startswith("~"):  # not expanded: a container's user may be known by a number alone
        raise FileNotFoundError("this user has no home folder")
    folder = Path(place).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def replace_file(target: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its name leads to the old content or to all of the new.

    The bytes go to a temporary file in the same folder, to the disk, and under the name in one step. The
    mode is the umask's.

    Args:
        target: the file.
        data: its new content.

    Raises:
        OSError: where it cannot be written (a full disk, no such folder, ...); no temporary file is left.
    """
    temporary = target.parent / f".culux-{secrets.token_hex(8)}.tmp"
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


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk; only POSIX can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
