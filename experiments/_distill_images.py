"""Students of networks for CIFAR-10: each learns from training images that are mirrored and moved,
and whose labels nobody reads.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from _distill_note import write_tables
from _save import run
from _transfer import SKIPPED
from lowrank_theory.data_constrained import Shuffled, agreement, distill
from lowrank_theory.models.resnet import Cifar10, correct
from lowrank_theory.networks import Parameters, cifar10_data, compress
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from train_alexnet import augmented

Network = tuple[Callable[..., Any], Any]
KEPT = Path(__file__).resolve().parents[1] / "out"
JUDGED = 250  # images at once


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all students have in common. An epoch is short, so that a run is kept often."""

    calibration: int = 2_000  # images to which factors are fitted
    batch: int = 64
    steps: int = 50  # in an epoch
    shift: int = 4  # pixels, in each direction


QUICK = Plan(calibration=40, batch=8, steps=2)


@dataclasses.dataclass(frozen=True)
class Student:
    """Before it learns. `finished` is the network that it is then, if another."""

    network: Network
    parameters: int
    epochs: int
    rate: float
    finished: Callable[[Any], Network] | None = None

    def ready(self, parameters: Any) -> Network:
        if self.finished is None:
            return self.network[0], parameters
        return self.finished(parameters)


@dataclasses.dataclass(frozen=True)
class Lessons:
    """A teacher, and what its students learn from. Runs are kept in `out/name`."""

    name: str
    teacher: Network
    data: Cifar10
    plan: Plan

    @staticmethod
    def of(name: str, network: tuple[Any, Any], seed: int, *, quick: bool) -> "Lessons":
        """`network` is one of the library's and its parameters."""
        teacher = network[0].apply, network[1]
        if quick:
            return Lessons(f"{name}_quick", teacher, noise(seed), QUICK)
        return Lessons(name, teacher, cifar10_data(), Plan())

    def factored(self, share: float, epochs: int, rate: float = 1e-3) -> tuple[Student, int]:
        """The teacher at low rank, each layer fitted to what it sees; and its own parameters."""
        batches = np.split(self.data.training_images[: self.plan.calibration], 4)
        compressed = compress(*self.teacher, batches, Parameters(share))
        network = compressed.function, compressed.parameters
        count = compressed.parameter_count
        return Student(network, count, epochs, rate), compressed.dense_parameter_count

    def judged(self, student: Network) -> dict[str, float]:
        """On test images."""
        images = self.data.held_out_images
        starts = range(0, len(images), JUDGED)
        batches = [images[start : start + JUDGED] for start in starts]
        found = agreement(self.teacher, student, batches)
        right = correct(*student, images, self.data.held_out_labels, batch=JUDGED)
        return {
            "accuracy": float(right.mean()), "agreement": found.share,
            "divergence": found.divergence,
        }  # fmt: skip

    def taught(
        self,
        student: Student,
        optimiser: Callable[[float, int], optax.GradientTransformation],
        *,
        key: Any,
    ) -> dict[str, Any]:
        """The student before and after, and how long a step took of those made in this process."""
        clock, plan = [], self.plan

        def progress(_: str, done: int, total: int) -> None:
            clock.append(time.process_time())
            if done % 10 == 0:
                print(f"{self.name}: {done} of {total} steps", flush=True)

        found = distill(
            self.teacher,
            student.network,
            Shuffled(self.data.training_images, plan.batch, plan.steps),
            optimiser=optimiser(student.rate, student.epochs * plan.steps),
            epochs=student.epochs,
            key=key,
            augment=partial(_moved, shift=plan.shift),
            folder=KEPT / self.name,
            progress=progress,
        )
        row: dict[str, Any] = {
            "parameters": student.parameters,
            "rate": student.rate,
            "steps": len(found.losses),
            "images_seen": len(found.losses) * plan.batch,
            "seconds_per_step": round(float(np.median(np.diff(clock))), 3) if clock[1:] else None,
            "before": self.judged(student.ready(student.network[1])),
            "after": self.judged(student.ready(found.parameters)),
            "first_losses": [round(float(value), 4) for value in found.losses[:3]],
        }
        for each in ("losses", "agreements"):
            by_epoch = getattr(found, each).reshape(-1, plan.steps).mean(axis=1)
            row[each] = [round(float(value), 4) for value in by_epoch]
        return row

    def numbers(self, dense: int, students: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Those of the figure."""
        return {
            "plan": dataclasses.asdict(self.plan),
            "training_images": len(self.data.training_images),
            "test_images": len(self.data.held_out_images),
            "parameters": dense,
            "teacher": self.judged(self.teacher),
            "students": dict(students),
        }


def _moved(images: Any, key: Any, shift: int) -> Any:
    return augmented(images, shift, key=key)


def decaying(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam at a rate that falls to zero."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def draw(numbers: Mapping[str, Any]) -> Figure:
    figure, (left, right) = panels(2, columns=2, width=5.0, height=3.6)
    students = numbers["students"]
    for (name, row), style in zip(students.items(), SERIES, strict=False):
        epochs = (0.5 + np.arange(len(row["losses"]))) * numbers["plan"]["steps"]
        left.plot(epochs, row["losses"], **style, markersize=4, label=name)
        values = [100 * row[when]["accuracy"] for when in ("before", "after")]
        right.plot([0, 1], values, **style, markersize=6, label=name)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel(f"steps of {numbers['plan']['batch']} unlabelled images")
    left.set_ylabel("divergence from the teacher (nats)")
    right.axhline(100 * numbers["teacher"]["accuracy"], **LIMIT, label="teacher")
    right.set_ylabel("test accuracy (%)")
    right.set_xticks([0, 1], ["before", "after"])
    right.set_xlabel("distillation")
    legend_above(figure, right, 4)
    return figure


def noise(seed: int) -> Cifar10:
    """A few images without meaning."""
    images = np.random.default_rng(seed).integers(0, 256, (80, 32, 32, 3), np.uint8)
    return Cifar10(images[:60], np.zeros(60, np.int32), images[60:], np.zeros(20, np.int32))


def keys(seed: int, count: int) -> Any:
    return jax.random.split(jax.random.key(seed), count)


def main(
    file: str,
    title: str,
    network: Callable[[], Any],
    measure: Callable[..., Any],
    draw: Callable[..., Figure],
    *,
    seed: int,
) -> None:
    """Measure, draw, and set the tables of the note; or say what is missing."""
    try:
        network()
        cifar10_data(1)
    except FileNotFoundError as missing:
        print(f"{title} cannot be distilled: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(file, measure, draw, seed=seed)
    if "--quick" not in sys.argv:
        write_tables()
