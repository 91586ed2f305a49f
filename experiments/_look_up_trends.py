"""The trends that an implementation of look-up tables must show, expected beside measured.

Expected figures are those of an independent experiment in NumPy on rows of the same laws: 128
inputs, 32 outputs, 8,000 rows to fit and 2,000 to judge, unless a function says otherwise. Errors
are squared, as a share of the squares about the mean, of rows to come.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lowrank_theory.approximations import Table
from lowrank_theory.lookup import (
    AbstractNonlinearity,
    AbstractOrder,
    AsTheyCome,
    Correlated,
    LookUp,
    Rectified,
    Rotated,
    Softmax,
    averaged_sums,
    bucket_means,
    in_bytes,
    k_means,
    look_up,
    ridge_entries,
    summed_entries,
)
from lowrank_theory.lookup.orders import subspaces
from lowrank_theory.networks import digits_data, digits_network

INPUTS, OUTPUTS = 128, 32
CODEBOOKS = (1, 2, 4, 8, 16, 32, 64)
Found = dict[str, list[float]]


def share(outputs: np.ndarray, found: Any) -> float:
    away = np.sum((outputs - np.asarray(found)) ** 2)
    return float(away / np.sum((outputs - outputs.mean(axis=0)) ** 2))


def drawn(
    random: np.random.Generator,
    rank: int,
    noise: float,
    samples: Sequence[int],
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to fit, rows to judge, and weights."""
    mixing = random.standard_normal((rank, inputs)) / np.sqrt(rank)
    rows = random.standard_normal((sum(samples), rank)) @ mixing
    rows = rows + noise * random.standard_normal(rows.shape)
    weights = random.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return rows[: samples[0]], rows[samples[0] :], weights


def made(
    rows: Any,
    weights: Any,
    codebooks: int,
    *,
    order: AbstractOrder | None = None,
    weighted: bool = False,
    through: AbstractNonlinearity | None = None,
) -> Table:
    """A table in floats, as published but for what is said."""
    options: dict[str, Any] = {"weighted": weighted, "through": through, "rounded": False}
    method = LookUp(order=order or AsTheyCome(), **options)
    table = look_up(rows, weights, codebooks, method=method)
    assert isinstance(table, Table)
    return table


# --- parts of the method --------------------------------------------------------------------------


def parts(random: np.random.Generator, rank: int, noise: float, samples: Sequence[int]) -> Found:
    """Trees and nearest centres, with bucket means and with entries fitted together; bytes of one
    step, a power of two; sums by averages, with their bias taken off and without.
    """
    rows, new, weights = drawn(random, rank, noise, samples)
    outputs, seen = new @ weights, rows @ weights
    found: Found = {}

    def add(name: str, made: Any, wanted: np.ndarray = outputs) -> None:
        found.setdefault(name, []).append(share(wanted, made))

    for codebooks in CODEBOOKS:
        places = subspaces(np.arange(INPUTS), codebooks)
        table = made(rows, weights, codebooks)
        codes, new_codes = (np.asarray(table.codes(each)) for each in (rows, new))
        means = bucket_means(codes, rows, places, 16) @ weights
        add("tree, bucket means", summed_entries(new_codes, means))
        add("tree, fitted", table.apply(new))
        add("the same, rows that were seen", table.apply(rows), seen)
        key = jax.random.key(int(random.integers(2**31)))
        centres = k_means(rows, places, steps=10, key=key)
        codes, new_codes = centres.codes(rows), centres.codes(new)
        means = bucket_means(codes, rows, places, 16) @ weights
        add("nearest centres, bucket means", summed_entries(new_codes, means))
        entries = ridge_entries(codes, seen, means)
        add("nearest centres, fitted", summed_entries(new_codes, entries))
        rounded = in_bytes(table, per_output=False, power_of_two=True)
        add("tree, fitted, bytes", rounded.apply(new))
        each = np.asarray(rounded.entries)[np.arange(codebooks), np.asarray(rounded.codes(new))]
        for name, unbiased in (("averaged", True), ("averaged, biased", False)):
            sums = averaged_sums(each.transpose(0, 2, 1), unbiased=unbiased)
            add(name, sums * np.asarray(rounded.step) + np.asarray(rounded.shift))
    return found


# --- orders and weights ---------------------------------------------------------------------------


def orders(random: np.random.Generator, kind: str, samples: Sequence[int]) -> Found:
    """Shuffled groups of eight inputs that are alike but for noise of 0.3, of one sign or of random
    ones; or white rows.
    """
    groups, outputs, codebooks = (8, 16, (4, 8, 16)) if kind == "signs" else (16, 32, (8, 16, 32))
    inputs, count = 8 * groups, sum(samples)
    rows = random.standard_normal((count, inputs))
    if kind != "white":
        rows = np.repeat(random.standard_normal((count, groups)), 8, axis=1) + 0.3 * rows
    if kind == "signs":
        rows = rows * random.choice([-1, 1], inputs)
    rows = rows[:, random.permutation(inputs)]
    weights = random.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    names = {
        "as they come": AsTheyCome(),
        "1 - r": Correlated(squared=False),
        "1 - r²": Correlated(),
        "rotated": Rotated(),
    }
    fitted, new = rows[: samples[0]], rows[samples[0] :]
    return {
        name: [
            share(new @ weights, made(fitted, weights, count, order=order).apply(new))
            for count in codebooks
        ]
        for name, order in names.items()
    }


def weight_aware(random: np.random.Generator, kind: str, samples: Sequence[int]) -> Found:
    """Ten outputs; the same where three quarters of the inputs have weights of a twentieth; one
    output; and 32 behind a ReLU of the rows.
    """
    outputs = {"one output": 1, "rectified rows": OUTPUTS}.get(kind, 10)
    rows, new, weights = drawn(random, 16, 0.1, samples, outputs=outputs)
    if kind == "few inputs count":
        small = random.permutation(INPUTS)[: 3 * INPUTS // 4]
        weights[small] *= 0.05
    if kind == "rectified rows":
        rows, new = np.maximum(rows, 0), np.maximum(new, 0)
    return {
        name: [
            share(new @ weights, made(rows, weights, count, weighted=weighted).apply(new))
            for count in (2, 4, 8, 16, 32)
        ]
        for name, weighted in (("tree", False), ("tree that knows the weights", True))
    }


# --- nonlinearities -------------------------------------------------------------------------------


def rectified(random: np.random.Generator, samples: Sequence[int]) -> Found:
    """64 inputs of rank 8, 48 outputs before a ReLU with bias -0.3; errors after it, and before."""
    rows, new, weights = drawn(random, 8, 0.1, samples, 64, 48)
    bias, found = np.full(48, -0.3), {}
    for words, through in (("linear", None), ("through the ReLU", Rectified(bias))):
        for codebooks in (2, 4, 8, 16):
            table = made(rows, weights, codebooks, through=through)
            for name, each in (("seen", rows), ("to come", new)):
                both = (each @ weights, np.asarray(table.apply(each)))
                wanted, after = (np.maximum(outputs + bias, 0) for outputs in both)
                found.setdefault(f"{words}, {name}", []).append(share(wanted, after))
            outputs = new @ weights
            before = share(outputs, table.apply(new))
            found.setdefault(f"{words}, before it", []).append(before)
    return found


def softmax() -> Found:
    """The last layer of the digits network, 128 inputs and 10 classes: held-out accuracy."""
    split, network = digits_data(), digits_network()
    rows, new = (
        np.asarray(network.layer_inputs(images)[-1], float)
        for images in (split.training_images, split.held_out_images)
    )
    weights = np.asarray(network.weights[-1], float)
    bias, labels = np.asarray(network.biases[-1], float), np.asarray(split.held_out_labels)

    def right(logits: np.ndarray) -> float:
        return float(np.mean(np.argmax(logits + bias, axis=1) == labels))

    found: Found = {"exact": [right(new @ weights)]}
    losses = {
        "squares": None,
        "relative entropy": Softmax(bias),
        "as in the published code": Softmax(bias, published=True),
    }
    for codebooks in (1, 2, 4, 8, 16, 32):
        for name, through in losses.items():
            table = made(rows, weights, codebooks, through=through)
            found.setdefault(name, []).append(right(np.asarray(table.apply(new))))
            if through is None:
                codes, new_codes = (np.asarray(table.codes(each)) for each in (rows, new))
                places = subspaces(np.arange(128), codebooks)
                means = bucket_means(codes, rows, places, 16) @ weights
                logits = summed_entries(new_codes, means)
                found.setdefault("bucket means", []).append(right(logits))
    return found


def whole_network() -> Found:
    """All layers of the digits network, one after the other: held-out accuracy, with tables that
    are fitted to outputs, and through the ReLU or the softmax that follows.
    """
    split, network = digits_data(), digits_network()
    labels, last = np.asarray(split.held_out_labels), len(network.weights) - 1
    found: Found = {}
    for words, kinds in (("squares", (None, None)), ("through", (Rectified, Softmax))):
        for codebooks in (2, 4, 8, 16, 32):
            images = split.training_images, split.held_out_images
            rows, new = (np.asarray(each, float) for each in images)
            for k, weights in enumerate(network.weights):
                kind, bias = kinds[k == last], np.asarray(network.biases[k], float)
                through = None if kind is None else kind(bias)
                table = made(rows, np.asarray(weights, float), codebooks, through=through)
                rows, new = (np.asarray(table.apply(each)) + bias for each in (rows, new))
                if k < last:
                    rows, new = np.maximum(rows, 0), np.maximum(new, 0)
            right = float(np.mean(np.argmax(new, axis=1) == labels))
            found.setdefault(words, []).append(right)
    return found


# --- all of them ----------------------------------------------------------------------------------


def mean(found: Iterable[Found]) -> Found:
    runs = list(found)
    return {name: np.mean([run[name] for run in runs], axis=0).tolist() for name in runs[0]}


def trends(seed: int, *, quick: bool) -> dict[str, Found]:
    """All that was measured, means over two draws; lists go with the numbers of codebooks of
    `EXPECTED`.
    """
    samples, draws = ((600, 300), 1) if quick else ((8000, 2000), 2)

    def over(place: int, measured: Any, *options: Any, sizes: Any = samples) -> Found:
        randoms = (np.random.default_rng([seed, place, draw]) for draw in range(draws))
        print(f"trend {place + 1} of 11", file=sys.stderr, flush=True)
        return mean(measured(random, *options, sizes) for random in randoms)

    found = {
        "rank 4": over(0, parts, 4, 0.1),
        "rank 16": over(1, parts, 16, 0.1),
        "full rank": over(2, parts, INPUTS, 0.0),
        "softmax": softmax(),
        "all layers": whole_network(),
    }
    for place, kind in enumerate(("groups", "signs", "white")):
        found[f"orders, {kind}"] = over(3 + place, orders, kind)
    for place, kind in enumerate(
        ("ten outputs", "few inputs count", "one output", "rectified rows")
    ):
        found[kind] = over(6 + place, weight_aware, kind)
    sizes = samples if quick else (4000, 2000)
    found["ReLU"] = over(10, rectified, sizes=sizes)
    return found


_SIX, _FIVE = (2, 4, 8, 16, 32, 64), (2, 4, 8, 16, 32)

# For each trend the numbers of codebooks, and what the independent experiment found.
EXPECTED: dict[str, tuple[Sequence[int], dict[str, Sequence[float]]]] = {
    "rank 4": (
        CODEBOOKS,
        {
            "tree, fitted": (0.390, 0.234, 0.131, 0.083, 0.042, 0.024, 0.016),
            "nearest centres, bucket means": (0.348, 0.348, 0.328, 0.293, 0.250, 0.171, 0.084),
        },
    ),
    "rank 16": (
        _SIX,
        {
            "tree, bucket means": (0.805, 0.753, 0.693, 0.546, 0.340, 0.115),
            "nearest centres, bucket means": (0.715, 0.664, 0.592, 0.474, 0.301, 0.102),
            "tree, fitted": (0.708, 0.473, 0.285, 0.154, 0.085, 0.030),
            "nearest centres, fitted": (0.604, 0.436, 0.257, 0.140, 0.068, 0.027),
            "tree, fitted, bytes": (0.708, 0.473, 0.285, 0.154, 0.085, 0.030),
            "averaged": (0.708, 0.474, 0.287, 0.156, 0.088, 0.037),
            "averaged, biased": (0.708, 0.475, 0.296, 0.171, 0.149, 0.279),
        },
    ),
    "full rank": (
        CODEBOOKS,
        {
            "tree, fitted": (0.958, 0.916, 0.861, 0.732, 0.522, 0.284, 0.104),
            "nearest centres, bucket means": (0.921, 0.888, 0.826, 0.738, 0.580, 0.337, 0.108),
        },
    ),
    "orders, groups": (
        (8, 16, 32),
        {"as they come": (0.511, 0.365, 0.227), "1 - r²": (0.241, 0.121, 0.079)},
    ),
    "orders, signs": (
        (4, 8, 16),
        {
            "as they come": (0.449, 0.283, 0.193),
            "1 - r": (0.375, 0.194, 0.101),
            "1 - r²": (0.243, 0.125, 0.082),
        },
    ),
    "orders, white": ((8, 16, 32), {}),
    "ten outputs": (
        _FIVE,
        {
            "tree": (0.674, 0.525, 0.310, 0.169, 0.086),
            "tree that knows the weights": (0.628, 0.458, 0.259, 0.143, 0.066),
        },
    ),
    "few inputs count": (
        _FIVE,
        {
            "tree": (0.712, 0.551, 0.308, 0.153, 0.079),
            "tree that knows the weights": (0.505, 0.345, 0.159, 0.064, 0.024),
        },
    ),
    "one output": (_FIVE, {}),
    "rectified rows": (_FIVE, {}),
    "ReLU": (
        (2, 4, 8, 16),
        {
            "linear, seen": (0.495, 0.361, 0.229, 0.121),
            "linear, to come": (0.505, 0.373, 0.238, 0.136),
            "through the ReLU, seen": (0.456, 0.334, 0.208, 0.105),
            "through the ReLU, to come": (0.467, 0.355, 0.232, 0.141),
        },
    ),
    "softmax": (
        (1, 2, 4, 8, 16, 32),
        {
            "bucket means": (0.622, 0.742, 0.805, 0.922, 0.954, 0.976),
            "squares": (0.622, 0.759, 0.845, 0.934, 0.962, 0.980),
            "relative entropy": (0.622, 0.765, 0.855, 0.948, 0.970, 0.980),
            "as in the published code": (0.622, 0.773, 0.841, 0.930, 0.974, 0.980),
        },
    ),
    "all layers": ((2, 4, 8, 16, 32), {}),
}
