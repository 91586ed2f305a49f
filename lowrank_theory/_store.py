"""Files that are believed later: each says what it is, and holds the digest of all of itself.

What a file is stands in it as a JSON object, its description: `format`, `version`, `sha256`, and
whatever tells it from others of its kind. The digest is the SHA-256 of the whole file, in which it
counts as zeros itself: a bit that has flipped anywhere is found. The description is metadata of a
safetensors file, the comment of a `.npz` file, or part of a JSON file.
"""

import dataclasses
import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lowrank_theory._files import (
    from_json,
    make_folder,
    plain,
    remove_leftovers,
    to_json,
    write_atomically,
)

_ZEROS = "0" * 64
_DIGEST = re.compile(rb'"sha256\\?": ?\\?"([0-9a-f]{64})\\?"')
_VERSION = 1  # of results in a folder
_LONGEST_HEADER = 100_000_000  # bytes; no reader of safetensors takes more
_BROKEN = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip

Description = dict[str, Any]
Stored = list[tuple[str, Any]]


def described(name: str, version: int, **what: Any) -> Description:
    """A description, its digest to be filled in by `seal`."""
    entries = {"format": f"lowrank_theory.{name}", "version": version, "sha256": _ZEROS}
    return entries | plain(what)


def seal(content: bytes) -> bytes:
    """The file with its digest in its place."""
    place = _DIGEST.search(content)
    assert place is not None
    return b"".join((content[: place.start(1)], _digest(content, place), content[place.end(1) :]))


def is_whole(content: bytes) -> bool:
    """Whether each bit of the file is as it was sealed."""
    place = _DIGEST.search(content)
    return place is not None and _digest(content, place) == place[1]


def _digest(content: bytes, place: re.Match[bytes]) -> bytes:
    view, digest = memoryview(content), hashlib.sha256()
    for part in (view[: place.start(1)], _ZEROS.encode(), view[place.end(1) :]):
        digest.update(part)
    return digest.hexdigest().encode()


# --- safetensors ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """A kind of safetensors file: its `name`, under which its description stands in the metadata,
    the `version` that is written (all before it are read, too), `what` it holds and what to do
    without it, in words.
    """

    name: str
    version: int
    what: str
    remedy: str

    def pack(self, arrays: Mapping[str, np.ndarray], **what: Any) -> bytes:
        """The bytes of a file. Raises `SafetensorError` for a dtype that safetensors has not."""
        text = json.dumps(described(self.name, self.version, **what), allow_nan=False)
        return seal(safetensors.numpy.save(dict(arrays), {self.name: text}))

    def unpack(self, path: Path) -> tuple[Description, Stored, bool]:
        """The description; the names of arrays, and what safetensors says of each; and whether
        there is a digest, which then is the right one.

        Raises `ValueError` for any other file.
        """
        try:
            content = _read(path)
            stored = safetensors.deserialize(content)
            header = from_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
            description = from_json((header.get("__metadata__") or {}).get(self.name, "null"))
        except (safetensors.SafetensorError, ValueError) as problem:
            reason = f"is truncated or no safetensors file ({problem})"
            raise self.refusal(path, reason) from None
        found = description if isinstance(description, dict) else {}
        if found.get("format") != f"lowrank_theory.{self.name}":
            raise self.refusal(path, f"holds something else than {self.what}")
        if found.get("version") not in range(1, self.version + 1):
            known = f"versions 1 to {self.version}" if self.version > 1 else "version 1"
            raise ValueError(
                f"The file {str(path)!r} of {self.what} has version {found.get('version')!r}; this "
                f"library reads {known}. Update `lowrank_theory`, or {self.remedy}."
            )
        if "sha256" in found and not is_whole(content):
            reason = "is damaged: its SHA-256 is not the one that it states"
            raise self.refusal(path, reason)
        return found, stored, "sha256" in found

    def refusal(self, path: Path, why: str) -> ValueError:
        """The error to raise for a file that is something else, or damaged."""
        return ValueError(f"The file {str(path)!r} {why}. Give another file, or {self.remedy}.")


def _read(path: Path) -> bytes:
    """The file, once its header has said that it is as long as it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = file.read(length)
        arrays = from_json(header)
        if not isinstance(arrays, dict):
            raise ValueError("its header is no JSON object")
        try:
            ends = [array["data_offsets"][1] for n, array in arrays.items() if n != "__metadata__"]
            end = max(ends, default=0)
        except (TypeError, LookupError):
            raise ValueError("its header does not say where its arrays lie") from None
        if end != size - 8 - length:
            raise ValueError(f"arrays of {end!r} bytes in a file of {size:,}")
        return start + header + file.read(size - 8 - length)


# --- folders --------------------------------------------------------------------------------------


class Results:
    """A folder of finished results, each in a file named by its identity: the hash of all that it
    depends on. `name` says of what kind they are.

    What is not whole, of another kind or of another identity is never taken for an answer. `found`
    counts what was. Raises `OSError` where the folder cannot be made, read or written.
    """

    def __init__(self, folder: Path, name: str, container: "Container") -> None:
        self.folder, self.name, self.container = folder, name, container
        self.found = 0
        self._used: set[Path] = set()
        make_folder(folder)

    def file(self, identity: str) -> Path:
        """Where a result is kept."""
        return self.folder / f"{identity}{self.container.suffix}"

    def load(self, identity: str, fits: Callable[[Any], bool]) -> Any:
        """The result; `None` where there is none, or with a warning, none that can be believed."""
        file = self.file(identity)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            if not is_whole(content):
                raise ValueError("its SHA-256 is another, or not there")
            description, result = self.container.unpack(content)
            wanted = described(self.name, _VERSION, identity=identity)
            if any(description.get(key) != wanted[key] for key in wanted.keys() - {"sha256"}):
                raise ValueError("it is another result")
            if not fits(result):
                raise ValueError("its numbers are of another shape or kind")
        except _BROKEN as problem:
            warnings.warn(f"{file} is corrupt ({problem}): computed anew.", stacklevel=3)
            return None
        self.found += 1
        self._used.add(file)
        return result

    def save(self, identity: str, result: Mapping[str, Any], **what: Any) -> None:
        """Write the file of a result in one step, with what it is in words."""
        description = described(self.name, _VERSION, identity=identity, **what)
        file = self.file(identity)
        write_atomically(file, seal(self.container.pack(description, result)))
        self._used.add(file)

    def prune(self) -> None:
        """Remove what this run neither found nor wrote: results of other sources or settings."""
        for file in self.folder.glob(f"*{self.container.suffix}"):
            if file not in self._used:
                file.unlink(missing_ok=True)
        remove_leftovers(self.folder)


@dataclasses.dataclass(frozen=True)
class Container:
    """How a description and a result stand in a file of this suffix."""

    suffix: str
    pack: Callable[[Description, Mapping[str, Any]], bytes]
    unpack: Callable[[bytes], tuple[Description, dict[str, Any]]]


def _columns_in_zip(description: Description, columns: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = json.dumps(description, allow_nan=False).encode()
    return buffer.getvalue()


def _columns_of_zip(content: bytes) -> tuple[Description, dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        description = _object(archive.comment)
    with np.load(io.BytesIO(content), allow_pickle=False) as columns:
        return description, dict(columns)


def _entries_of_json(content: bytes) -> tuple[Description, dict[str, Any]]:
    entries = _object(content)
    return entries, entries


def _object(text: bytes) -> dict[str, Any]:
    found = from_json(text)
    if not isinstance(found, dict):
        raise ValueError("it says nothing of itself")
    return found


COLUMNS = Container(".npz", _columns_in_zip, _columns_of_zip)
ENTRIES = Container(
    ".json", lambda description, entries: to_json(description | dict(entries)), _entries_of_json
)
