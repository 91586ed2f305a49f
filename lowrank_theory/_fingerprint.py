"""What a number depends on beside its description: the sources and the versions that made it."""

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "equinox")
_SOURCES = Path(__file__).parent


@functools.cache
def fingerprint() -> str:
    """A hash of the sources of this package, and of the versions of what it computes with."""
    digest = hashlib.sha256(platform.machine().encode())
    for file in sorted(_SOURCES.rglob("*.py")):
        digest.update(file.relative_to(_SOURCES).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for package in PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()
