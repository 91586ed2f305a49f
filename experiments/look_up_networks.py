"""Whole networks by look-up tables: perceptrons of four layers, 30 wide, on digits and on MNIST.

    python experiments/look_up_networks.py [--quick]

One layer at a time, and all of them, each fitted to what the tables before it leave of its inputs;
and the same with the exact layers after it trained again before they are replaced themselves. Exact
layers and tables see training images, accuracy is that of held-out ones. A seed is a training of
the network and, of MNIST, the images to which tables are fitted. The published figures are those of
McCarter and Dronen (2022, figure and text), of their own training of such a network. In the same
file are the convolutions of AlexNet, and the last layers of AlexNet and ResNet-20.

What is finished, a method on one training, is kept in out/look_up_networks: started again, the
script goes on from there.
"""

import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.figure import Figure

from _look_up_alexnet import alexnet
from _look_up_last import last_layers
from _look_up_note import write_tables
from _save import column, interval, run
from _transfer import SKIPPED
from lowrank_theory.lookup import AsTheyCome, Correlated, LookUp, look_up
from lowrank_theory.networks import Dataset, Perceptron, digits_data, mnist_data
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, legend_above, panels
from lowrank_theory.studies.pieces import Pieces

KEPT = Path(__file__).resolve().parents[1] / "out" / "look_up_networks"
SEED = 32
WIDTH, HIDDEN = 30, 3
CODEBOOKS = (1, 2, 4, 8, 16)
BATCH, LEARNING_RATE = 100, 3e-3
SEEDS, EPOCHS = 3, {"digits": 100, "mnist": 12}
FITTED = 4000  # images, at most, that tables see
METHODS = {
    "published": LookUp(order=AsTheyCome(), weighted=False, rounded=False),
    "weighted": LookUp(order=AsTheyCome(), rounded=False),
    "ours": LookUp(order=Correlated()),
}
PUBLISHED = {  # accuracy on MNIST
    "exact": 0.968,
    "layers": (
        (0.362, 0.453, 0.632, 0.760, 0.844),
        (0.386, 0.587, 0.816, 0.918, 0.955),
        (0.540, 0.750, 0.871, 0.942, 0.962),
        (0.646, 0.885, 0.936, 0.955, 0.965),
    ),
    "all": (0.361, 0.363, 0.520, 0.705, 0.849),
}


def initial(inputs: int, classes: int, *, key: Array) -> Perceptron:
    """He's initialisation."""
    widths = [inputs, *[WIDTH] * HIDDEN, classes]
    sides = list(itertools.pairwise(widths))
    keys = jax.random.split(key, len(sides))
    pairs = zip(keys, sides, strict=True)
    weights = [jax.random.normal(k, side) * (2 / side[0]) ** 0.5 for k, side in pairs]
    return Perceptron(weights, [jnp.zeros(side[1]) for side in sides])


def trained(
    network: Perceptron, rows: Array, labels: Array, *, epochs: int, rate: float, key: Array
) -> Perceptron:
    """Adam on the cross-entropy, at a rate that falls to zero."""
    used = len(rows) // BATCH * BATCH
    keys = jax.random.split(key, epochs)
    batches = jax.vmap(lambda k: jax.random.permutation(k, len(rows))[:used])(keys)
    return _descended(network, rows, labels, batches.reshape(-1, BATCH), rate)


@jax.jit
def _descended(
    network: Perceptron, rows: Array, labels: Array, batches: Array, rate: float
) -> Perceptron:
    optimiser = optax.adam(optax.cosine_decay_schedule(1.0, len(batches)))

    def loss(network: Perceptron, batch: Array) -> Array:
        logits = network(rows[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def step(carry: Any, batch: Array) -> Any:
        network, state = carry
        updates, state = optimiser.update(jax.grad(loss)(network, batch), state)
        updates = jax.tree.map(lambda leaf: rate * leaf, updates)
        return (eqx.apply_updates(network, updates), state), None

    start = network, optimiser.init(eqx.filter(network, eqx.is_array))
    return jax.lax.scan(step, start, batches)[0][0]


def fitted(method: LookUp, seen: Any, weights: Any, codebooks: int) -> Any:
    """A table for what a layer sees, for at most as many codebooks as it has inputs."""
    return look_up(seen, weights, min(codebooks, seen.shape[1]), method=method)


def after(table: Any, bias: Any, rows: Any, *, last: bool) -> Array:
    """What the next layer sees, or the logits."""
    outputs = jnp.asarray(table.apply(rows)) + bias
    return outputs if last else jax.nn.relu(outputs)


def rest_of(network: Perceptron, first: int) -> Perceptron:
    return Perceptron(network.weights[first:], network.biases[first:])


def accuracy(logits: Any, labels: Any) -> float:
    return float(np.mean(np.asarray(logits).argmax(axis=1) == np.asarray(labels)))


def converted(
    network: Perceptron, split: Dataset, method: LookUp, codebooks: int, *, epochs: int, key: Any
) -> dict[str, float]:
    """The accuracy with each layer, with all, and with all after training in between."""
    seen, new = split.training_images, split.held_out_images
    labels, count = split.held_out_labels, len(network.weights)
    exact, unseen = network.layer_inputs(seen), network.layer_inputs(new)
    first = fitted(method, seen, network.weights[0], codebooks)
    found = {}
    for k in range(count):
        table = fitted(method, exact[k], network.weights[k], codebooks) if k else first
        outputs = after(table, network.biases[k], unseen[k], last=k == count - 1)
        logits = outputs if k == count - 1 else rest_of(network, k + 1)(outputs)
        found[f"layer_{k}"] = accuracy(logits, labels)
    for name in ("all", "trained_between"):
        rows, others, current = seen, new, network
        for k in range(count):
            table = fitted(method, rows, current.weights[0], codebooks) if k else first
            bias, last = current.biases[0], k == count - 1
            rows, others = (after(table, bias, x, last=last) for x in (rows, others))
            if not last:
                current = rest_of(current, 1)
                if name == "trained_between":
                    options: dict[str, Any] = {"epochs": epochs, "rate": LEARNING_RATE / 3}
                    inner = jax.random.fold_in(key, k)
                    given = rows, split.training_labels
                    current = trained(current, *given, **options, key=inner)
        found[name] = accuracy(others, labels)
    return found


def measure(*, quick: bool) -> dict[str, Any]:
    seeds = 2 if quick else SEEDS
    sources = {"digits": digits_data} if quick else {"digits": digits_data, "mnist": mnist_data}
    found: dict[str, Any] = {}
    pieces = Pieces(None if quick else KEPT, {"seed": SEED, "source": Path(__file__).read_text()})
    for place, (name, source) in enumerate(sources.items()):
        split = source()
        runs: dict[str, list[Any]] = {method: [] for method in METHODS}
        exact = []
        for seed in range(seeds):
            key = jax.random.fold_in(jax.random.key(SEED), 100 * place + seed)
            start, shuffle, images, between = jax.random.split(key, 4)
            network = initial(split.training_images.shape[1], 10, key=start)
            options: dict[str, Any] = {"epochs": EPOCHS[name], "rate": LEARNING_RATE}
            given = split.training_images, split.training_labels
            network = trained(network, *given, **options, key=shuffle)
            exact.append(accuracy(network(split.held_out_images), split.held_out_labels))
            chosen = jax.random.permutation(images, len(split.training_images))[:FITTED]
            part = Dataset(
                split.training_images[chosen],
                split.training_labels[chosen],
                split.held_out_images,
                split.held_out_labels,
            )
            counts = CODEBOOKS[1:3] if quick else CODEBOOKS
            for label, method in METHODS.items():
                make = partial(_at_all_sizes, network, part, between, method, counts)
                runs[label].append(pieces.get(f"{name} {seed} {label}", make)["found"])
        found[name] = {
            "exact": interval(np.array(exact)),
            "held_out": len(split.held_out_labels),
            **{label: _over_seeds(each) for label, each in runs.items()},
        }
    if not quick:
        found["alexnet"] = pieces.get("alexnet", lambda: alexnet(SEED, quick=quick))["found"]
        found["last"] = pieces.get("last", last_layers)["found"]
        pieces.prune()
    return {"seeds": seeds, "width": WIDTH, "published": PUBLISHED, **found}


def _at_all_sizes(
    network: Perceptron, part: Dataset, key: Array, method: LookUp, counts: Sequence[int]
) -> list[dict[str, Any]]:
    rows = []
    for codebooks in counts:
        inner = jax.random.fold_in(key, codebooks)
        made = converted(network, part, method, codebooks, epochs=10, key=inner)
        rows.append({"codebooks": codebooks, **made})
    return rows


def _over_seeds(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    gathered = []
    for rows in zip(*runs, strict=True):
        names = [name for name in rows[0] if name != "codebooks"]
        of_each = {name: interval(np.array([row[name] for row in rows])) for name in names}
        gathered.append({"codebooks": rows[0]["codebooks"], **of_each})
    return gathered


def draw(numbers: dict[str, Any]) -> Figure:
    names = [name for name in ("digits", "mnist") if name in numbers]
    figure, drawn = panels(len(names), width=4.6, height=4.2)
    for panel, name in zip(drawn, names, strict=True):
        rows = numbers[name]["published"]
        codebooks = column(rows, "codebooks")
        for k, style in zip(range(4), SERIES, strict=False):
            mean = column(rows, f"layer_{k}", "mean")
            panel.plot(codebooks, mean, **style, markersize=4, label=f"layer {k + 1} alone")
        for label, what, marker, dashes in (
            ("published", "all", "s", "-"),
            ("published", "trained_between", "s", ":"),
            ("ours", "all", "o", "--"),
        ):
            line: dict[str, Any] = {"color": BLACK, "marker": marker, "linestyle": dashes}
            words = {"all": "all layers", "trained_between": "all, trained in between"}[what]
            words += ", ours" * (label == "ours")
            found = numbers[name][label]
            mean, low, high = (column(found, what, part) for part in ("mean", "low", "high"))
            panel.plot(codebooks, mean, markersize=5, label=words, **line)
            panel.fill_between(codebooks, low, high, color=BLACK, alpha=0.1, linewidth=0)
        panel.axhline(numbers[name]["exact"]["mean"], **LIMIT, label="exact layers")
        if name == "mnist":
            published: dict[str, Any] = {"color": BLACK, "marker": "x", "linestyle": ""}
            panel.plot(
                CODEBOOKS, numbers["published"]["all"], **published, label="all, as published"
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_ylim(0, 1)
        panel.set_xlabel("codebooks of 16 codes")
        panel.set_title({"digits": "digits, 64 inputs", "mnist": "MNIST, 784 inputs"}[name])
    drawn[0].set_ylabel("accuracy on held-out images")
    legend_above(figure, drawn[-1])
    return figure


if __name__ == "__main__":
    try:
        run(__file__, measure, draw, seed=SEED)
        if "--quick" not in sys.argv:
            write_tables()
    except FileNotFoundError as error:
        print(error)
        sys.exit(SKIPPED)
