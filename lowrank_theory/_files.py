"""Files that are written in one step or refused beforehand, and strict JSON."""

import contextlib
import dataclasses
import enum
import errno
import fcntl
import itertools
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)
_LONGEST = 200  # bytes of a name that are in that of its temporary file


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its path holds the old content or the new, never a part of it, even
    after a loss of power.

    A symbolic link stays, and the file that it leads to is written. A file that is there keeps its
    mode and, as far as that is allowed, its owner; a new one has the mode that the process gives to
    new files. Other names of the same file (hard links) keep the old content, and a warning says
    so. A device or a pipe is written into. What killed writers of the same file have left is
    removed.

    Raises `OSError` where that fails, for instance for a read-only file or on a full disk, and then
    leaves nothing behind.
    """
    with _naming(path):
        target, found = _destination(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            with target.open("wb", buffering=0) as file:
                _write(file, content)
            return
        if found is not None and found.st_nlink > 1:
            warnings.warn(
                f"{path} has other names (hard links): they keep the old content.", stacklevel=3
            )
        with _temporary(target) as (temporary, file):
            if found is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            _write(file, content)
            os.fsync(file.fileno())
            temporary.replace(target)
        _sync(target.parent)


def check_writable(path: Path) -> None:
    """Raise `OSError`, before long work, where `write_atomically` would raise it afterwards."""
    with _naming(path):
        target, found = _destination(path)
        if found is None or stat.S_ISREG(found.st_mode):
            with _temporary(target):
                pass


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where they are missing.

    Raises `OSError` where that fails, or where no file can be written into it.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "It is no folder", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with _naming(folder), _temporary(folder / "new"):
        pass


def is_leftover(path: Path) -> bool:
    """Whether this is the name of a file that is being written, or was when its writer was
    killed.
    """
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left in a folder."""
    for path in folder.glob(".*.tmp"):
        if is_leftover(path):
            _remove_if_left(path)


def _destination(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where the file lies, past symbolic links, and what is known of one that is there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "It is a folder, not a file", str(path))
    # The system lets its administrator write read-only files, who has said not to.
    if not found.st_mode & 0o222 or not os.access(path, os.W_OK):
        reason = "The file is read-only: make it writable, or name another"
        raise PermissionError(errno.EACCES, reason, str(path))
    return (Path(os.path.realpath(path)) if stat.S_ISREG(found.st_mode) else path), found


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the path: that of a full disk names none, others a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, Any]]:
    """A new file beside the target, open for writing, which is gone afterwards unless renamed.

    It is locked as long as its writer lives, by which others know it from what one that was killed
    has left.
    """
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST])
    for number in itertools.count():
        path = target.with_name(f".{name}.{number}.tmp")
        _remove_if_left(path)
        try:
            # Not by `tempfile`, whose files are their owner's alone: the umask is to decide.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue  # somebody else is writing the same file
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123
            if _lock(descriptor) is False or not _is_at(descriptor, path):
                continue  # somebody has just taken it for a leftover
            try:
                yield path, file
            finally:
                if _is_at(descriptor, path):
                    path.unlink()
            return


def _remove_if_left(path: Path) -> None:
    """Remove a temporary file that no living process writes."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _lock(descriptor) and _is_at(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the file is ours now; `None` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(file: Any, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _sync(folder: Path) -> None:
    """Have a new name on the disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- JSON -----------------------------------------------------------------------------------------


def to_json(content: Any) -> bytes:
    """Strict JSON in UTF-8: a number that is not finite raises `ValueError`."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode(errors="backslashreplace")  # half a character, as JSON escapes it


def from_json(text: str | bytes) -> Any:
    """What JSON says. Raises `ValueError` where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def plain(value: Any) -> Any:
    """The same value in what JSON has: a dataclass is the mapping of its fields, a member of an
    enumeration its value; a number that is not finite becomes `None`.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return float(value) if math.isfinite(value) else None
