"""Trained networks and data, embedded or in a folder of the user's: found, read, and refused in
one way.
"""

import dataclasses
import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_theory._files import from_json

_TEXT = 100_000_000  # bytes; the largest text that is read has a third of them
_HEADER = 20_000  # bytes; NumPy reads no longer ones
_WIDEST = 16  # bytes of a number
_RATIO = 100  # of unpacked bytes to packed ones; weights have a ratio near one
_SMALL = 1_000_000  # bytes that are unpacked at any ratio

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of the arrays in a file, from which the sizes of a network are read, and the error
    for a file without such a network.
    """

    found: dict[str, Shape]
    damaged: Callable[[str], ValueError]

    def size(self, name: str, axis: int = 0) -> int:
        """Of an array along an axis.

        Raises `ValueError` where there is no such array, and for one without such an axis or
        without entries.
        """
        if name not in self.found:
            raise self.damaged(f"it has no {name}")
        shape = self.found[name]
        if len(shape) <= axis or min(shape) < 1:
            raise self.damaged(f"{name} has shape {shape}")
        return shape[axis]


def embedded(file: Path, sha256: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file of this package.

    Raises `ValueError` where it is not the file of this SHA-256.
    """
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is {digest}, but {sha256} was expected. "
            "Install the package again."
        )
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder below the one that the environment variable `LOWRANK_DATA` names.

    `layout` says what the folder holds and where that can be got; nothing is downloaded. An
    absolute path is a folder anywhere.
    """

    folder: str | Path
    layout: str

    def _help(self) -> str:
        return f"The folder named by the environment variable LOWRANK_DATA must hold\n{self.layout}"

    def path(self, name: str) -> Path:
        """Where a file of the folder is or should be.

        Raises `FileNotFoundError` where `LOWRANK_DATA` is needed and not set.
        """
        root = os.environ.get("LOWRANK_DATA")
        if not root and not Path(self.folder).is_absolute():
            raise FileNotFoundError(f"LOWRANK_DATA is not set.\n{self._help()}")
        return Path(root or "/") / self.folder / name

    def find(self, *names: str) -> Path:
        """The first of these files that is there.

        Raises `FileNotFoundError` where none is.
        """
        paths = [self.path(name) for name in names]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(f"{' or '.join(map(str, paths))} is missing.\n{self._help()}")

    def damaged(self, path: Path, reason: object) -> ValueError:
        """The error to raise for a file that is not what the layout says."""
        return ValueError(
            f"{path} is damaged or another file: {reason}. Get it again.\n{self._help()}"
        )

    def content(self, path: Path, limit: int) -> bytes:
        """The bytes of a file, which must be at most so many.

        Raises `ValueError` where there are more, or they cannot be read.
        """
        try:
            size = path.stat().st_size
            if size > limit:
                raise self.damaged(path, f"it has {size:,} bytes, where {limit:,} are the most")
            return path.read_bytes()
        except OSError as error:
            raise self.damaged(path, error) from error

    def text(self, *names: str) -> tuple[Path, str]:
        """The first of these files that is there, in UTF-8, its line ends as they are.

        Raises `FileNotFoundError` where none is, `ValueError` where it is empty or not UTF-8.
        """
        path = self.find(*names)
        try:
            content = self.content(path, _TEXT).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(path, error) from error
        if not content:
            raise self.damaged(path, "it is empty")
        return path, content

    def json(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The JSON object in a file.

        Raises `FileNotFoundError` where there is no such file, `ValueError` where it has none.
        """
        path, content = self.text(name)
        try:
            found = from_json(content)
        except ValueError as error:
            raise self.damaged(path, error) from error
        if not isinstance(found, dict):
            raise self.damaged(path, "it is not a JSON object")
        return path, found

    def shapes(self, name: str) -> Shapes:
        """The shapes of all arrays in a `.npz` file, as their headers have them.

        Raises `FileNotFoundError` where the file is not there, `ValueError` where it is damaged.
        """
        path = self.find(name)
        try:
            with zipfile.ZipFile(path) as stored:
                keys = [key for key in stored.namelist() if key.endswith(".npy")]
                found = {key.removesuffix(".npy"): _shape(stored, key) for key in keys}
        except Exception as error:  # zipfile and NumPy raise a dozen kinds on damaged bytes
            raise self.damaged(path, error) from error
        return Shapes(found, lambda reason: self.damaged(path, reason))

    def arrays(self, name: str, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
        """The arrays of these names in a `.npz` file, in float32.

        Raises `FileNotFoundError` where the file is not there, `ValueError` where an array is
        missing, of another shape, or not of finite numbers. How much there is to unpack is looked
        at before.
        """
        path = self.find(name)
        try:
            with zipfile.ZipFile(path) as stored:
                _check_unpacked(stored, shapes)
                arrays = {key: _entry(stored, key, shape) for key, shape in shapes.items()}
        except Exception as error:  # as above
            raise self.damaged(path, error) from error
        return {key: self.checked(path, key, arrays[key], shapes[key]) for key in shapes}

    def array(self, name: str, shape: Shape) -> tuple[Path, np.ndarray]:
        """The array in a `.npy` file, of any dtype.

        Raises `FileNotFoundError` where there is no such file, `ValueError` where its array is of
        another shape.
        """
        path = self.find(name)
        try:
            with path.open("rb") as file:
                return path, _array(file, path.stat().st_size, name, shape)
        except Exception as error:  # as above
            raise self.damaged(path, error) from error

    def checked(self, path: Path, name: str, array: np.ndarray, shape: Shape) -> np.ndarray:
        """An array of this shape and of finite numbers, in float32.

        Raises `ValueError` for any other.
        """
        if array.shape != shape:
            raise self.damaged(path, f"{name} has shape {array.shape}, not {shape}")
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise self.damaged(path, f"{name} is {array.dtype}, not floating point")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise self.damaged(path, f"{name} has entries that are not finite in float32")
        return array


def _shape(stored: zipfile.ZipFile, key: str) -> Shape:
    with _opened(stored, key) as file:
        return _header(file.read(_HEADER))[0]


def _opened(stored: zipfile.ZipFile, key: str) -> Any:
    if stored.getinfo(key).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # NumPy writes no others, of which any number of bytes may be unpacked at once.
        raise ValueError(f"{key} is compressed in another way than NumPy's")
    return stored.open(key)


def _check_unpacked(stored: zipfile.ZipFile, names: Iterable[str]) -> None:
    entries = [stored.getinfo(f"{name}.npy") for name in names]
    size = sum(entry.file_size for entry in entries)
    most = _SMALL + _RATIO * sum(entry.compress_size for entry in entries)
    if size > most:
        raise ValueError(f"it unpacks to {size:,} bytes, where {most:,} are the most")


def _entry(stored: zipfile.ZipFile, name: str, shape: Shape) -> np.ndarray:
    key = f"{name}.npy"
    with _opened(stored, key) as file:
        return _array(file, stored.getinfo(key).file_size, name, shape)


def _array(file: Any, size: int, name: str, shape: Shape) -> np.ndarray:
    """The array of this shape in the `size` bytes of a `.npy` file, or an error."""
    begun = file.read(_HEADER)
    found, dtype, header = _header(begun)
    if found != shape:
        raise ValueError(f"{name} has shape {found}, not {shape}")
    if header + dtype.itemsize * math.prod(shape) != size:
        raise ValueError(f"{name} has {size:,} bytes, which its header does not say")
    if dtype.itemsize > _WIDEST:
        raise ValueError(f"{name} is {dtype}, not of numbers")
    content = io.BytesIO(begun + file.read(size - len(begun)))
    return np.lib.format.read_array(content, allow_pickle=False)


def _header(begun: bytes) -> tuple[Shape, np.dtype, int]:
    """The shape, the dtype and the length of the header with which a `.npy` file begins."""
    content = io.BytesIO(begun)
    if np.lib.format.read_magic(content) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(content)
    return shape, dtype, content.tell()
