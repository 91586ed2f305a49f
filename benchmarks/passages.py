"""Through how many modules an argument passes before it is used.

python benchmarks/passages.py

Two are followed, in a small network: the `batches` of `compress`, to where they are gone through,
and the network of the command `transfer`, to where its function is called. Each time one is used,
the modules of the package on the stack that hold it are written down, from the outside in: those
of whose functions it is an argument or a local variable, or a field of one. A chain that is too
long, or enters a module twice, is marked, and then the exit code is 1.
"""

import contextlib
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import lowrank_theory
from lowrank_theory import cli
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.networks import Case, Loaded, Metric, Parameters, Sizes, compress

MOST = 6  # modules
PACKAGE = Path(lowrank_theory.__file__).parent
SIZES = Sizes(calibration=12, held_out=8, units=4, items=8, batch=4)

Chain = tuple[str, ...]


def chain(followed: tuple[Any, ...]) -> Chain:
    """The modules on the stack that hold one of these, each followed by those that it calls."""
    frame: FrameType | None = sys._getframe(1)
    modules: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and _holds(frame, followed):
            modules.append(path.relative_to(PACKAGE).with_suffix("").as_posix())
        frame = frame.f_back
    return tuple(module for module, _ in itertools.groupby(reversed(modules)))


def _holds(frame: FrameType, followed: tuple[Any, ...]) -> bool:
    held = list(frame.f_locals.values())
    fields = [value for local in held for value in getattr(local, "__dict__", {}).values()]
    return any(each is one for each in (*held, *fields) for one in followed)


def is_short(found: Chain) -> bool:
    """Few modules, and none twice."""
    return len(found) <= MOST and len(set(found)) == len(found)


# --- a small network ------------------------------------------------------------------------------


def perceptron(parameters: list[Array], images: Array) -> Array:
    """Two layers."""
    first, second = parameters
    return jax.nn.relu(images @ first) @ second


def weights() -> list[Array]:
    """Of these."""
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((12, 10), (10, 8))]


def images(count: int) -> list[np.ndarray]:
    """In batches of four."""
    random = np.random.default_rng(1)
    return [random.normal(size=(4, 12)).astype(np.float32) for _ in range(count // 4)]


class Batches:
    """Batches that write down from where they are gone through."""

    def __init__(self) -> None:
        self.chains: set[Chain] = set()

    def __iter__(self) -> Iterator[np.ndarray]:
        self.chains.add(chain((self,)))
        return iter(images(SIZES.calibration))


def of_batches() -> set[Chain]:
    """From `compress`, on its own and in sequence."""
    batches = Batches()
    for sequential in (False, True):
        compress(perceptron, weights(), batches, Parameters(0.7), sequential=sequential)
    return batches.chains


def of_network() -> set[Chain]:
    """From the command `transfer`: the case, what is loaded of it, and its function."""
    chains: set[Chain] = set()
    forms: list[Any] = []

    def function(parameters: list[Array], batch: Array) -> Array:
        chains.add(chain(tuple(forms)))
        return perceptron(parameters, batch)

    def scores(run: Callable[..., Array], parameters: Any) -> np.ndarray:
        rows = np.concatenate(images(SIZES.items))
        return np.asarray(run(parameters, rows)).sum(axis=1)

    def read(_: Sizes) -> Loaded:
        units = [image[None] for image in np.concatenate(images(SIZES.units))]
        metric = Metric("mean", True, scores, lambda found: float(np.mean(found)))
        batches = images(SIZES.calibration)
        forms.append(Loaded(function, weights(), batches, images(8), units, metric))
        return forms[-1]

    case = Case("small", "two layers", "image", "Noise.", SIZES, read)
    forms += [case, function]
    CASES[case.name] = case
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["transfer", case.name, "--budget", "0.7", "--out", folder])
    finally:
        del CASES[case.name]
    if code:
        raise RuntimeError(f"`transfer` ended with exit code {code}.")
    return {found[found.index("cli/transfer") :] for found in chains}


FOLLOWED = {"batches of compress": of_batches, "network of transfer": of_network}


def main() -> int:
    """Print the chains."""
    long = 0
    for name, follow in FOLLOWED.items():
        print(name)
        for found in sorted(follow(), key=len, reverse=True):
            long += not is_short(found)
            print(f"  {len(found)}{'' if is_short(found) else ' !'}  {' > '.join(found)}")
    return int(long > 0)


if __name__ == "__main__":
    sys.exit(main())
