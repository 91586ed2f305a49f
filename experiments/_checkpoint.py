"""The state of a training run in a file: written in one step, read by the same plan only."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx

from lowrank_theory._files import write_atomically

State = TypeVar("State")


def write(checkpoint: Path, plan: Any, state: Any) -> None:
    """One line that says what was planned, a dataclass, then the arrays."""
    buffer = io.BytesIO()
    buffer.write(json.dumps(dataclasses.asdict(plan)).encode() + b"\n")
    eqx.tree_serialise_leaves(buffer, state)
    write_atomically(checkpoint, buffer.getvalue())


def read(checkpoint: Path, plan: Any, *, like: State) -> State:
    """The state a run stopped in.

    Raises `ValueError` where that run followed another plan.
    """
    with checkpoint.open("rb") as file:
        planned = json.loads(file.readline())
        if planned != dataclasses.asdict(plan):
            raise ValueError(
                f"{checkpoint} is of a run with another plan, {planned}. Move it away to start "
                "from the beginning."
            )
        return eqx.tree_deserialise_leaves(file, like)
