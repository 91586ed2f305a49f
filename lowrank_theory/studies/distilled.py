"""A network at low rank that learns again from itself, on data whose labels nobody reads."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from lowrank_theory._engine.compress import compress
from lowrank_theory._engine.targets import Parameters
from lowrank_theory._numerics import check_count, check_fraction
from lowrank_theory._progress import Progress
from lowrank_theory._rows import AbstractRow, column
from lowrank_theory.data_constrained import Shuffled, agreement, distill
from lowrank_theory.data_constrained.soft_labels import Network
from lowrank_theory.models.catalogue import Sizes, find
from lowrank_theory.studies._paired import paired

NETWORKS = ("digits", "digits_cnn", "mnist", "resnet20", "resnet56", "alexnet")
"""Those of the catalogue of this kind."""
KIND = "that classifies images"

BATCH = 64
RATE = 1e-3  # of Adam, at its peak: at once, it throws factors far from where they were fitted


class DistilledRow(AbstractRow):
    """The network at low rank, before or after it has learned."""

    network: str = column("network", "low rank as it was fitted, or distilled after that")
    accuracy: float = column("accuracy", "the share of the held-out images that are recognised")
    low: float = column("lost from", "of the dense network's accuracy, paired (95 %)")
    high: float = column("lost to", "its upper end")
    gained_low: float | None = column("gained from", "over low rank, paired (95 %)", default=None)
    gained_high: float | None = column("gained to", "its upper end", default=None)
    recovered: float | None = column(
        "recovered", "the share of the accuracy lost by low rank that came back; none where none "
        "was lost", default=None,
    )  # fmt: skip
    agreement: float = column(
        "agrees", "the share of the held-out images on which it decides as the dense network does"
    )
    divergence: float = column(
        "divergence", "from the dense network's probabilities on them", unit="nats"
    )
    seconds: float = column("seconds", "of the processor, for the fit or for the steps of this run")


def distilled(
    name: str,
    share: float = 0.1,
    *,
    epochs: int = 20,
    images: int | None = None,
    seed: int = 0,
    sizes: Sizes | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[float, tuple[DistilledRow, ...]]:
    """The accuracy of a network of `NETWORKS`, and that at low rank with a `share` of its
    parameters, before and after it was distilled: the factors learn from the network's answers to
    the images to which they were fitted (`images` says to how many), in so many `epochs` of Adam.

    With a `folder`, what has been learned is kept there after every epoch, and the same call goes
    on from it. Labels are read of held-out images only, to judge.

    Raises `ValueError` for an unknown network, a share that is none or cannot be met, and fewer
    images than one batch and one more; `OSError` where the folder cannot be written, and what the
    readers of the network raise.
    """
    share, epochs = check_fraction("share", share), check_count("epochs", epochs, 1)
    if name not in NETWORKS:
        raise ValueError(
            f"`name` must be a network {KIND}, of {', '.join(NETWORKS)}; got {name!r}."
        )
    sizes = sizes or find(name).sizes
    if images is not None:
        images = check_count("images", images, sizes.batch + 1)
        sizes = dataclasses.replace(sizes, calibration=images)
    loaded = find(name).load(sizes)
    teacher = loaded.function, loaded.parameters
    start = time.process_time()
    made = compress(*teacher, loaded.calibration, Parameters(share), select=loaded.select)
    fitted = made.function, made.parameters
    fitting = time.process_time() - start
    rows = np.concatenate(loaded.calibration)
    batches = Shuffled(rows, min(BATCH, len(rows)))

    def after_each_epoch(name: str, done: int, total: int) -> None:
        if progress is not None and done % len(batches) == 0:
            progress(name, done // len(batches), epochs)

    start = time.process_time()
    found = distill(
        teacher,
        fitted,
        batches,
        optimiser=distillation_optimiser(epochs * len(batches)),
        epochs=epochs,
        key=jax.random.key(seed),
        folder=folder,
        progress=after_each_epoch,
    )
    learning = time.process_time() - start
    learned = made.function, found.parameters

    networks = teacher, fitted, learned
    exact, before, after = (np.asarray(loaded.metric.scores(*each), float) for each in networks)

    def judged(student: Network, right: np.ndarray, **others: Any) -> DistilledRow:
        alike = agreement(teacher, student, loaded.held_out)
        low, high = paired(exact - right)
        return DistilledRow(
            accuracy=float(right.mean()), low=low, high=high, agreement=alike.share,
            divergence=alike.divergence, **others,
        )  # fmt: skip

    lost, gained = float((exact - before).mean()), float((after - before).mean())
    gained_low, gained_high = paired(after - before)
    return float(exact.mean()), (
        judged(fitted, before, network="low rank", seconds=fitting),
        judged(
            learned, after, network="distilled", seconds=learning, gained_low=gained_low,
            gained_high=gained_high, recovered=gained / lost if lost > 0 else None,
        ),
    )  # fmt: skip


def distillation_optimiser(steps: int) -> optax.GradientTransformation:
    """Adam, whose rate rises and falls; what a normalisation has kept of the data stays."""

    def statistics(parameters: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path).endswith(("['mean']", "['variance']")),
            parameters,
        )

    rate = optax.cosine_onecycle_schedule(steps, RATE, pct_start=0.25)
    return optax.chain(optax.adam(rate), optax.masked(optax.set_to_zero(), statistics))
