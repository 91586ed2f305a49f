"""Codes by the nearest of several centres in each subspace.

This is product quantisation (Jégou, Douze and Schmid 2011): its codes are better than those of a
tree, and cost a multiply-add for each centre and input, where a tree compares four numbers. It is
here for comparison, on the host.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from lowrank_theory._numerics import check_array, check_count, check_key
from lowrank_theory.lookup.trees import unit


class Centres(NamedTuple):
    """The centres of each subspace, which is given by the places of its inputs."""

    parts: list[Int[np.ndarray, " _inputs"]]
    centres: list[Float[np.ndarray, "codes _inputs"]]

    def codes(self, rows: Float[np.ndarray, "samples inputs"]) -> Int[np.ndarray, "samples parts"]:
        """The nearest centre in each subspace, the first of those that are equally near."""
        found = [
            np.argmin(_squared_distances(rows[:, part], centres), axis=1)
            for part, centres in zip(self.parts, self.centres, strict=True)
        ]
        return np.stack(found, axis=1)


def k_means(
    rows: Float[np.ndarray, "samples inputs"],
    parts: list[Int[np.ndarray, " _inputs"]],
    *,
    codes: int = 16,
    steps: int = 20,
    key: PRNGKeyArray,
) -> Centres:
    """Centres by so many steps of Lloyd's algorithm, from rows drawn by the squared distance to
    those that were drawn before (Arthur and Vassilvitskii 2007). A centre that no row is nearest to
    stays where it is.
    """
    rows = np.asarray(check_array("rows", rows, "samples", "inputs"), np.float64)
    codes, steps = check_count("codes", codes, 1), check_count("steps", steps, 0)
    bits = np.asarray(jax.random.key_data(check_key("key", key)))
    random = np.random.default_rng(bits)
    found = [_k_means(rows[:, part], codes, steps, random) for part in parts]
    return Centres(parts, found)


def _k_means(rows: np.ndarray, codes: int, steps: int, random: np.random.Generator) -> np.ndarray:
    scaled = unit(rows)
    chosen = [int(random.integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    for _ in range(codes - 1):
        nearest = np.minimum(nearest, _squared_distances(scaled, scaled[chosen[-1:]])[:, 0])
        total = nearest.sum()
        law = nearest / total if total > 0 else None
        chosen.append(int(random.choice(len(rows), p=law)))
    centres = rows[chosen]
    for _ in range(steps):
        code = np.argmin(_squared_distances(rows, centres), axis=1)
        sizes = np.bincount(code, minlength=codes)
        sums = np.zeros_like(centres)
        np.add.at(sums, code, rows)
        there = sizes[:, None] > 0
        centres = np.where(there, sums / np.maximum(sizes, 1)[:, None], centres)
    return centres


def _squared_distances(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Divided by a power of two."""
    power = -np.frexp(max(np.abs(rows).max(initial=0), np.abs(centres).max(initial=0)))[1]
    rows, centres = np.ldexp(rows, power), np.ldexp(centres, power)
    squares = np.sum(rows**2, axis=1)[:, None]
    return np.maximum(squares - 2 * rows @ centres.T + np.sum(centres**2, axis=1), 0)
