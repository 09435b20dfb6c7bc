"""What the autotuner measured, and the files that keep it: one for every device and its versions.

Processes that tune at the same time lose nothing: a file is read again, added to and replaced whole while its
folder is locked. A file that cannot be read as one of these is set aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from culux.backends.cache import cache_folder, replace_file

if sys.platform != "win32":
    import fcntl

__all__ = ["Key", "Record", "add", "clear", "file_of", "folder", "load", "load_all"]

Key: TypeAlias = tuple[int | str, ...]
"""What an operation's times depend on: shapes, dtypes, flags."""

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One choice: what was timed, what it took, and what was picked.

    Args:
        operation: the operation.
        key: its shapes, dtypes and flags.
        device: the device's name.
        versions: the versions of culux, of CUDA and of the driver, by name.
        default: the candidate that runs where nothing is timed.
        winner: the candidate that was picked.
        times: microseconds of one call, by candidate.
        failed: why the other candidates could not be run.
        when: date and time (ISO 8601, UTC).
    """

    operation: str
    key: Key
    device: str
    versions: Mapping[str, str]
    default: str
    winner: str
    times: Mapping[str, float]
    failed: Mapping[str, str]
    when: str

    @property
    def gain(self) -> float | None:
        """The share of the default's time that the winner saves; None where the default failed."""
        return self._saved(self.times.get(self.default))

    @property
    def margin(self) -> float | None:
        """The share of the next best candidate's time that the winner saves; None where there is no other.

        Negative where the default won a tie.
        """
        return self._saved(min((time for name, time in self.times.items() if name != self.winner), default=None))

    def _saved(self, other: float | None) -> float | None:
        return None if other is None else 1 - self.times[self.winner] / other

    def is_whole(self) -> bool:
        """Whether every field is of its type and they agree, as they may not in a file that was damaged."""
        texts = (self.operation, self.device, self.default, self.winner, self.when)
        tables = (*self.versions.items(), *self.failed.items())
        return (
            all(isinstance(text, str) for text in (*texts, *self.times, *(part for row in tables for part in row)))
            and all(isinstance(part, int | str) for part in self.key)
            and all(isinstance(time, float) and 0 < time < math.inf for time in self.times.values())
            and self.winner in self.times
            and self.default in {*self.times, *self.failed}
        )


def folder() -> Path:
    """Where the files are."""
    return cache_folder("tuning")


def file_of(device: str, versions: Mapping[str, str]) -> Path:
    """The file for a device and the versions that its times depend on."""
    digest = hashlib.sha256(json.dumps([device, sorted(versions.items())]).encode()).hexdigest()
    return folder() / f"{re.sub('[^A-Za-z0-9]+', '-', device).strip('-')}-{digest[:12]}.json"


def load(path: Path) -> dict[tuple[str, Key], Record]:
    """The records of a file by operation and key; none where there is no file.

    A file that is damaged or foreign gets the ending ``.corrupt``, with a warning.

    Raises:
        OSError: where the file or its folder cannot be used.
    """
    with _locked(path.parent):
        return _load(path)


def load_all() -> list[Record]:
    """The records of every file, sorted by operation, device and key, the older ones first."""
    found = [record for path in sorted(folder().glob("*.json")) for record in load(path).values()]
    return sorted(
        found, key=lambda record: (record.operation, record.device, list(map(_order, record.key)), record.when)
    )


def add(record: Record) -> dict[tuple[str, Key], Record]:
    """Write a record into the file of its device and versions; what the file holds then, as `load` has it.

    Raises:
        OSError: where it cannot be written; the file is as it was.
    """
    path = file_of(record.device, record.versions)
    with _locked(path.parent):
        records = _load(path)
        records[record.operation, record.key] = record
        content = {"schema": SCHEMA, "records": [asdict(record) for record in records.values()]}
        replace_file(path, json.dumps(content, indent=1).encode())
    return records


def clear() -> list[Path]:
    """Delete every file, those that were set aside too; the paths that were deleted.

    Raises:
        OSError: where one cannot be deleted.
    """
    place = folder()
    with _locked(place):
        patterns = ("*.json", "*.corrupt", ".culux-*.tmp")  # the last are of writers that were killed
        paths = sorted(path for pattern in patterns for path in place.glob(pattern))
        for path in paths:
            path.unlink()
    return paths


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Alone among processes in a folder; where the system has no such locks, the last to write a file wins."""
    with open(place / ".lock", "ab") as file:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # some network file systems have none
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks


def _load(path: Path) -> dict[tuple[str, Key], Record]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return {(record.operation, record.key): record for record in _parse(json.loads(content), path)}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        warnings.warn(
            f"{path} is no file of the autotuner ({type(error).__name__}: {error}); it is now {aside.name}, and what "
            "it held is timed again",
            stacklevel=2,
        )
        return {}


def _parse(content: Any, path: Path) -> list[Record]:
    if content["schema"] != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {content['schema']!r}")
    names = [field.name for field in fields(Record)]
    found = [
        Record(**{name: entry[name] for name in names} | {"key": tuple(entry["key"])}) for entry in content["records"]
    ]
    for record in found:
        if not record.is_whole() or file_of(record.device, record.versions).name != path.name:
            raise ValueError(f"a damaged record of {record.operation!r}")
    return found


def _order(part: int | str) -> tuple[bool, int, str]:
    """Integers as integers, before strings."""
    return (True, 0, part) if isinstance(part, str) else (False, part, "")
