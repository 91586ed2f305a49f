"""Students of the digits network, on images whose labels nobody reads.

Left, students of every size: perceptrons of one hidden layer from random weights, and the network's
own factors, before and after distillation. Then what it depends on: images of other kinds in the
place of digits; what is said of them, from soft labels to a few true ones; and generations, each of
which teaches the next. A seed is the initial weights and the order of the batches; nothing was
chosen by looking at held-out images.

python experiments/distill_digits.py [--quick]
"""

import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.figure import Figure

from _distill_note import write_tables
from _save import column, interval, run
from _transfer import SKIPPED
from lowrank_theory.data_constrained import Shuffled, agreement, distill
from lowrank_theory.networks import (
    Parameters,
    Perceptron,
    cifar10_data,
    compress,
    digits_data,
    digits_network,
    mnist_data,
)
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD

SEED = 53
BATCH = 100
HIDDEN = (4, 8, 16, 32, 64)
SMALL = 16  # hidden units of the student that is taught in other ways
SHARES = (0.5, 0.25, 0.1, 0.05)
TENTH = 0.1
METHODS = {"fitted": ActivationWeighted(), "truncated": TruncatedSVD()}
GENERATIONS = 4
FEW = 100  # true labels
SURE = 1e3  # a logit that leaves no doubt
FROM_RANDOM, FROM_FACTORS = optax.adam(3e-3), optax.adam(1e-3)

Measured = dict[str, dict[str, float]]


def of_images(network: Perceptron, batch: Mapping[str, Array]) -> Array:
    return network(batch["images"])


def decisions(network: Perceptron, batch: Mapping[str, Array]) -> Array:
    """The network's, as logits without doubt."""
    return _sure(of_images(network, batch).argmax(axis=1))


def labels(_: Any, batch: Mapping[str, Array]) -> Array:
    return _sure(batch["labels"])


def _sure(classes: Array) -> Array:
    return SURE * jax.nn.one_hot(classes, 10)


TEACHERS = {"soft": of_images, "decisions": decisions, "true": labels, "few": labels}


def initial(*widths: int, key: Array) -> Perceptron:
    """He's initialisation."""
    sides = list(itertools.pairwise(widths))
    keys = jax.random.split(key, len(sides))
    pairs = zip(keys, sides, strict=True)
    weights = [jax.random.normal(k, side) * (2 / side[0]) ** 0.5 for k, side in pairs]
    return Perceptron(weights, [jnp.zeros(side[1]) for side in sides])


def parameters_of(network: Perceptron) -> int:
    """In weights, as `compress` counts."""
    return sum(weights.size for weights in network.weights)


class Study:
    """The teacher, its images, and how often everything is done."""

    def __init__(self, *, quick: bool) -> None:
        self.seeds, self.epochs, self.tuned = (2, 4, 2) if quick else (5, 60, 30)
        self.network, split = digits_network(), digits_data()
        self.training = {"images": split.training_images, "labels": split.training_labels}
        self.held_out = {"images": split.held_out_images, "labels": split.held_out_labels}
        self.teacher = of_images, self.network

    def judged(self, function: Callable[..., Array], parameters: Any) -> dict[str, float]:
        """On held-out images."""
        found = agreement(self.teacher, (function, parameters), [self.held_out])
        decided = function(parameters, self.held_out).argmax(axis=1)
        accuracy = float(np.mean(decided == self.held_out["labels"]))
        return {
            "accuracy": accuracy, "agreement": found.share, "divergence": found.divergence,
        }  # fmt: skip

    def over_seeds(self, one: Callable[[Array], dict[str, float]]) -> Measured:
        found = [one(key) for key in jax.random.split(jax.random.key(SEED), self.seeds)]
        return {name: interval(np.array([each[name] for each in found])) for name in found[0]}

    def from_random(
        self, hidden: int, *, said: str = "soft", rows: Any = None, count: int | None = None
    ) -> Measured:
        """A perceptron with so many hidden units, as often stepped whatever it learns from."""
        rows = self.training if rows is None else rows
        if count is not None:
            rows = jax.tree.map(lambda leaf: leaf[:count], rows)
        batches = Shuffled(rows, BATCH)
        epochs = self.epochs * len(Shuffled(self.training, BATCH)) // len(batches)

        def one(key: Array) -> dict[str, float]:
            key_start, key = jax.random.split(key)
            student = initial(64, hidden, 10, key=key_start)
            found = distill(
                (TEACHERS[said], self.network), (of_images, student), batches,
                optimiser=FROM_RANDOM, epochs=epochs, key=key,
            )  # fmt: skip
            return self.judged(of_images, found.parameters)

        return self.over_seeds(one)

    def from_factors(self, share: float, name: str, sets: Mapping[str, Any]) -> dict[str, Any]:
        """The network's factors, before and after they have learned from each set of images."""
        compressed = compress(
            of_images, self.network, [self.training], Parameters(share), method=METHODS[name]
        )

        def learned(rows: Any) -> Callable[[Array], dict[str, float]]:
            def one(key: Array) -> dict[str, float]:
                found = distill(
                    self.teacher, (compressed.function, compressed.parameters),
                    Shuffled(rows, BATCH), optimiser=FROM_FACTORS, epochs=self.tuned, key=key,
                )  # fmt: skip
                return self.judged(compressed.function, found.parameters)

            return one

        return {
            "share": share,
            "method": name,
            "parameters": compressed.parameter_count,
            "ranks": [layer.rank for layer in compressed.layers.values()],
            "before": self.judged(compressed.function, compressed.parameters),
            "after": {each: self.over_seeds(learned(rows)) for each, rows in sets.items()},
        }

    def generations(self) -> list[Measured]:
        """Each of the teacher's own widths, from random weights, and the teacher of the next."""
        widths = [64, *(weights.shape[1] for weights in self.network.weights)]
        found: list[list[dict[str, float]]] = []
        for key in jax.random.split(jax.random.key(SEED), self.seeds):
            teacher, line = self.teacher, []
            for generation in jax.random.split(key, GENERATIONS):
                key_start, key_steps = jax.random.split(generation)
                student = distill(
                    teacher, (of_images, initial(*widths, key=key_start)),
                    Shuffled(self.training, BATCH), optimiser=FROM_FACTORS, epochs=self.epochs,
                    key=key_steps,
                )  # fmt: skip
                teacher = of_images, student.parameters
                line.append(self.judged(*teacher))
            found.append(line)
        return [
            {name: interval(np.array([each[name] for each in same])) for name in same[0]}
            for same in zip(*found, strict=True)
        ]


def other_images(training: Mapping[str, Array]) -> dict[str, dict[str, np.ndarray]]:
    """As many images as there are digits, of 8 × 8 pixels from 0 to 1, and no labels."""
    count = len(training["images"])
    random = np.random.default_rng(SEED)
    written = np.pad(
        np.reshape(mnist_data().training_images[:count], (-1, 28, 28)), [(0, 0), (2, 2), (2, 2)]
    )
    photographed = cifar10_data(count).training_images.mean(axis=-1) / 255
    pixels = random.permuted(np.asarray(training["images"]), axis=0)
    sets = {
        "MNIST": _small(written),
        "photographs": _small(photographed),
        "shuffled pixels": pixels,
        "uniform noise": random.uniform(size=pixels.shape),
    }
    return {name: {"images": np.asarray(rows, np.float32)} for name, rows in sets.items()}


def _small(images: np.ndarray) -> np.ndarray:
    """Means over 4 × 4 pixels."""
    return images.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)


def measure(*, quick: bool) -> dict[str, Any]:
    study = Study(quick=quick)
    digits = {"digits": study.training}
    sets = {**digits, **other_images(study.training)}
    hidden, shares = ((SMALL,), (TENTH,)) if quick else (HIDDEN, SHARES)
    small = []
    for each in hidden:
        size = parameters_of(initial(64, each, 10, key=jax.random.key(0)))
        small.append({"hidden": each, "parameters": size, **study.from_random(each)})
    factors = [
        study.from_factors(share, name, sets if (share, name) == (TENTH, "fitted") else digits)
        for share in shares
        for name in METHODS
    ]
    said = {
        name: study.from_random(SMALL, said=name, count=FEW if name == "few" else None)
        for name in TEACHERS
    }
    elsewhere = {name: study.from_random(SMALL, rows=rows) for name, rows in sets.items()}
    return {
        "seeds": study.seeds,
        "epochs": {"random": study.epochs, "factors": study.tuned},
        "batch": BATCH,
        "few": FEW,
        "training_images": len(study.training["images"]),
        "held_out_images": len(study.held_out["images"]),
        "parameters": parameters_of(study.network),
        "teacher": study.judged(*study.teacher),
        "perceptrons": small,
        "factors": factors,
        "small": {"hidden": SMALL, "said": said, "images": elsewhere},
        "generations": study.generations(),
    }


# --- drawing --------------------------------------------------------------------------------------


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(4, columns=2, width=5.0, height=3.6)
    teacher = 100 * numbers["teacher"]["accuracy"]
    for panel in axes:
        panel.axhline(teacher, **LIMIT, label="teacher")
    _sizes(axes[0], numbers)
    (tenth,) = (
        row for row in numbers["factors"] if (row["share"], row["method"]) == (TENTH, "fitted")
    )
    hidden = f"64-{numbers['small']['hidden']}-10"
    learned = {hidden: numbers["small"]["images"], "factors at a tenth": tenth["after"]}
    _bars(axes[1], learned, "images that the teacher is asked about")
    axes[1].axhline(
        100 * tenth["before"]["accuracy"], color="0.5", linestyle=":", label="factors before"
    )
    said = {hidden: numbers["small"]["said"]}
    words = {
        "soft": "soft labels", "decisions": "the teacher's\ndecisions", "true": "true labels",
        "few": f"{numbers['few']} true\nlabels",
    }  # fmt: skip
    _bars(axes[2], said, "what is said of the images", words)
    generations = numbers["generations"]
    for each, style in zip(("accuracy", "agreement"), SERIES, strict=False):
        values = 100 * column(generations, each, "mean")
        axes[3].plot(1 + np.arange(len(values)), values, **style, label=each)
    axes[3].set_xlabel("generation")
    axes[3].set_xticks(range(1, 1 + len(generations)))
    axes[3].set_ylabel("held-out images (%)")
    for panel in axes:
        panel.legend(frameon=False, fontsize=8)
    return figure


def _sizes(panel: Any, numbers: dict[str, Any]) -> None:
    def line(label: str, rows: list[dict[str, Any]], path: tuple[str, ...], style: Any) -> None:
        shares = column(rows, "parameters") / numbers["parameters"]
        panel.plot(shares, 100 * column(rows, *path), **style, markersize=4, label=label)

    styles = iter(SERIES)
    line("perceptrons", numbers["perceptrons"], ("accuracy", "mean"), next(styles))
    for name in METHODS:
        rows = [row for row in numbers["factors"] if row["method"] == name]
        line(f"{name}", rows, ("before", "accuracy"), next(styles))
        line(f"{name}, distilled", rows, ("after", "digits", "accuracy", "mean"), next(styles))
    panel.set_xscale("log")
    panel.set_xlabel("share of the teacher's parameters")
    panel.set_ylabel("held-out accuracy (%)")


def _bars(
    panel: Any,
    students: dict[str, dict[str, Any]],
    label: str,
    words: Mapping[str, str] = {},
) -> None:
    names = list(next(iter(students.values())))
    for (student, found), style in zip(students.items(), SERIES, strict=False):
        low, mean, high = (
            100 * np.array([found[n]["accuracy"][part] for n in names])
            for part in ("low", "mean", "high")
        )
        marks = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
        panel.errorbar(range(len(names)), mean, [mean - low, high - mean], **marks, label=student)
    panel.set_xticks(
        range(len(names)), [words.get(n, n.replace(" ", "\n")) for n in names], fontsize=8
    )
    panel.set_xlabel(label)
    panel.set_ylabel("held-out accuracy (%)")


if __name__ == "__main__":
    try:
        other_images({"images": jnp.zeros((1, 64))})
    except FileNotFoundError as missing:
        print(f"other images are missing: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_tables()
