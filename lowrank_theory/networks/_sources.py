"""Trained networks and data, embedded or in a folder of the user's: found, read, and refused in
one way.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np


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

    def text(self, *names: str) -> tuple[Path, str]:
        """The first of these files that is there, in UTF-8, its line ends as they are.

        Raises `FileNotFoundError` where none is, `ValueError` where it is empty or not UTF-8.
        """
        path = self.find(*names)
        try:
            content = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise self.damaged(path, error) from error
        if not content:
            raise self.damaged(path, "it is empty")
        return path, content

    def arrays(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The arrays of these names in a `.npz` file, in float32.

        Raises `FileNotFoundError` where the file is not there, `ValueError` where an array is
        missing, of another shape, or not of finite numbers.
        """
        path = self.find(name)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in shapes}
        except Exception as error:  # zipfile and NumPy raise a dozen kinds on damaged bytes
            raise self.damaged(path, error) from error
        return {name: self.checked(path, name, arrays[name], shapes[name]) for name in shapes}

    def checked(
        self, path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """An array of this shape and of finite numbers, in float32.

        Raises `ValueError` for any other.
        """
        if array.shape != shape:
            raise self.damaged(path, f"{name} has shape {array.shape}, not {shape}")
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise self.damaged(path, f"{name} is {array.dtype}, not floating point")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise self.damaged(path, f"{name} has entries that are not finite")
        return array
