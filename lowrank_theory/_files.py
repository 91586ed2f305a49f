"""Files in one step, and strict JSON."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its path holds the old content or the new, never a part of it.

    Raises `OSError` where that fails, and then leaves nothing behind.
    """
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def to_json(content: Any) -> bytes:
    """Strict JSON in UTF-8: a number that is not finite raises `ValueError`."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The same value in what JSON has; a number that is not finite becomes `None`."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return float(value) if math.isfinite(value) else None
