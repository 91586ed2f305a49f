"""Files of users: Python outside of this package that holds a network or a theorem of theirs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_RUN: dict[str, ModuleType] = {}
_FOLDERS: set[str] = set()  # from which files were run


def in_file(text: str) -> tuple[Path, str] | None:
    """The file and the name in it that `folder/mine.py:name` says; the name is empty where only a
    file is said. `None` for what says no Python file.
    """
    file, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    return (Path(file), name) if file.endswith(".py") else None


def run_file(path: Path) -> ModuleType:
    """Run a file as the module of its name, from whose folder it and other processes can import.

    Raises `ValueError` for a file that is not there or cannot be run, and for one that has the name
    of a module that Python knows.
    """
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    if sys.modules.get(name) is not _RUN.get(name) or _is_known(name, path):
        raise ValueError(f"{path} has the name of a module, {name!r}, that is another: rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = _RUN[name] = module
    folder = str(path.parent)
    _FOLDERS.add(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # which processes that are started inherit
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name], _RUN[name]
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _is_known(name: str, path: Path) -> bool:
    """Whether Python finds another module of this name, that is no file of a user as well."""
    if name in _RUN:
        return False
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin == str(path):
        return False
    return found.origin is None or str(Path(found.origin).parent) not in _FOLDERS
