r"""Layers of the shapes of DistilBERT and of the AlexNet of 2012, whose weights are not at hand:
random ones, and ones whose singular values are planted. Nothing is said of accuracy.

Weights are $W = U\operatorname{diag}(s)V^\top$ with orthonormal factors that are products of cosine
transforms and random signs; inputs have the moments $U\operatorname{diag}(h)U^\top$. So low rank,
truncated or fitted, is known in closed form from s and h. Rounding and pruning choose by entries:
they are done to 256 of the outputs, drawn at random, which stand for all. GPTQ is done where the
inputs are few (768). Times are of products with whole matrices as they are stored.

    python experiments/compare_shapes.py [--quick]
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import fft

from _save import run
from lowrank_theory.approximations import AbstractMatrix, Dense, LowRank
from lowrank_theory.networks import kurtosis
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.quantisation import gptq, round_to_nearest
from lowrank_theory.recovery import dense_float64
from lowrank_theory.sparsification import largest_entries, wanda
from lowrank_theory.studies.gaussian_losses import truncated_loss

SEED = 0
SHAPES = {
    "DistilBERT, attention": (768, 768),
    "DistilBERT, up": (768, 3072),
    "AlexNet, fc6": (9216, 4096),
}
QUICK = {"a small one": (96, 128)}
SHARES = (1 / 16, 1 / 8, 1 / 4)  # of the bits of float32
BITS = {1 / 16: 2, 1 / 8: 4, 1 / 4: 8}
OUTPUTS = 256
FEW_INPUTS = 1_000  # up to which GPTQ is done
BATCHES = (1, 32)
REPETITIONS = 7


def _cosines(columns: np.ndarray) -> np.ndarray:
    found: Any = fft.idct(columns, axis=0, norm="ortho")
    return np.asarray(found)


def _of_cosines(columns: np.ndarray) -> np.ndarray:
    found: Any = fft.dct(columns, axis=0, norm="ortho")
    return np.asarray(found)


def transformed(columns: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """A rotation of columns: random signs between two cosine transforms."""
    return _cosines(signs[:, None] * _cosines(columns))


class Layer:
    """Some outputs of a layer, its singular values, and the second moments of its inputs in their
    basis, the mean being one.
    """

    def __init__(
        self, shape: tuple[int, int], values: np.ndarray, moments: np.ndarray, seed: int
    ) -> None:
        inputs, outputs = shape
        random = np.random.default_rng(seed)
        self.shape, self.values, self.moments = shape, values, moments
        self.left_signs = random.choice([-1.0, 1.0], inputs)
        right_signs = random.choice([-1.0, 1.0], outputs)
        chosen = random.choice(outputs, min(OUTPUTS, outputs), replace=False)
        picked = np.zeros((outputs, len(chosen)))
        picked[chosen, np.arange(len(chosen))] = 1
        # V is the transpose of such a rotation, so that columns of V^T are those of the rotation.
        padded = np.zeros((inputs, len(chosen)))
        padded[: len(values)] = values[:, None] * transformed(picked, right_signs)[: len(values)]
        self.weights = transformed(padded, self.left_signs).astype(np.float32)

    def weight_error(self, made: AbstractMatrix) -> float:
        return float(np.linalg.norm(self._missing(made)) / np.linalg.norm(self.weights))

    def output_error(self, made: AbstractMatrix) -> float:
        return self._seen(self._missing(made)) / self._seen(self.weights.astype(float))

    def _missing(self, made: AbstractMatrix) -> np.ndarray:
        return self.weights.astype(float) - dense_float64(made)

    def _seen(self, matrix: np.ndarray) -> float:
        """The norm of the outputs, in the basis of the inputs."""
        turned = _of_cosines(self.left_signs[:, None] * _of_cosines(matrix))
        return float(np.sqrt(np.sum(self.moments[:, None] * turned**2)))

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """The second moments themselves, where the inputs are few."""
        root = transformed(np.diag(np.sqrt(self.moments)), self.left_signs)
        return root @ root.T

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """The root mean squares of the inputs; of many, by those of random rows."""
        if self.shape[0] <= FEW_INPUTS:
            return np.sqrt(np.diagonal(self.gram))
        random = np.random.default_rng(SEED)
        drawn = np.sqrt(self.moments)[:, None] * random.standard_normal((len(self.moments), 200))
        return np.sqrt(np.mean(transformed(drawn, self.left_signs) ** 2, axis=1))

    def truncated(self, rank: int) -> tuple[float, float]:
        """The errors of the weights and of the outputs, in closed form."""
        squares, seen = self.values**2, self.values**2 * self.moments[: len(self.values)]
        return _tail(squares, rank), _tail(seen, rank)

    def fitted(self, rank: int) -> tuple[float, float]:
        """The same of the best layer for these inputs."""
        seen = self.values**2 * self.moments[: len(self.values)]
        order = np.argsort(-seen)
        return _tail((self.values**2)[order], rank), _tail(seen[order], rank)


def _tail(squares: np.ndarray, rank: int) -> float:
    return math.sqrt(float(np.sum(squares[rank:]) / np.sum(squares)))


def spectra(shape: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Singular values of random weights, and two planted spectra."""
    count = min(shape)
    index = np.arange(1.0, count + 1)
    if count <= FEW_INPUTS:
        gaussian = np.random.default_rng(seed).standard_normal(shape)
        white = np.linalg.svd(gaussian, compute_uv=False)
    else:
        white = np.sqrt(np.maximum(-np.diff([_kept(shape, rank) for rank in range(count + 1)]), 0))
    return {"random": white, "planted, i^-1/2": index**-0.5, "planted, i^-1": index**-1.0}


def _kept(shape: tuple[int, int], rank: int) -> float:
    return 1.0 if rank == 0 else 0.0 if rank == min(shape) else truncated_loss(*shape, rank)


def moments_of(inputs: int, power: float) -> np.ndarray:
    """Eigenvalues of the inputs, in an order that has nothing to do with the weights."""
    found = np.arange(1.0, inputs + 1) ** -power
    return np.random.default_rng(SEED).permutation(found) / np.mean(found)


def methods(layer: Layer, share: float) -> dict[str, tuple[float, float, float, float]]:
    """Errors of the weights and the outputs, and the shares of bits and bytes, of each method."""
    inputs, outputs = layer.shape
    rank = max(1, int(share * inputs * outputs / (inputs + outputs)))
    kept = share - 1 / 32
    of_rank = rank * (inputs + outputs) / (inputs * outputs)
    made: dict[str, Callable[[], AbstractMatrix]] = {
        "rounded": lambda: round_to_nearest(layer.weights, BITS[share]),
        "sparse": lambda: largest_entries(layer.weights, max(1, round(kept * layer.weights.size))),
        "wanda": lambda: wanda(layer.weights, layer.norms, max(1, round(kept * inputs))),
    }
    if inputs <= FEW_INPUTS:
        levels = round_to_nearest(layer.weights, BITS[share])
        made["gptq"] = lambda: gptq(layer.weights, layer.gram, levels)
    found = {
        "data-agnostic": (*layer.truncated(rank), of_rank, of_rank),
        "data-driven": (*layer.fitted(rank), of_rank, of_rank),
    }
    for name, make in made.items():
        each = make()
        dense = Dense(layer.weights).storage
        shares = each.storage.ideal_bits / dense.ideal_bits, each.storage.bytes / dense.bytes
        found[name] = (layer.weight_error(each), layer.output_error(each), *shares)
    return found


def _seconds(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())
    taken = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def times(shape: tuple[int, int], share: float) -> list[dict[str, Any]]:
    """Seconds of a product with the whole matrix, as it is stored, over those of the dense one."""
    random = np.random.default_rng(SEED)
    weights = random.standard_normal(shape, np.float32)
    inputs, outputs = shape
    rank = max(1, int(share * inputs * outputs / (inputs + outputs)))
    kept = max(1, round((share - 1 / 32) * weights.size))
    sides = [random.standard_normal(side, np.float32) for side in ((inputs, rank), (rank, outputs))]
    stored: dict[str, AbstractMatrix] = {
        "low rank": LowRank(*map(jnp.asarray, sides)),
        "rounded": round_to_nearest(weights, BITS[share], clipped=False),
        "sparse": largest_entries(weights, kept),
    }
    multiply = jax.jit(lambda matrix, rows: matrix.apply(rows))
    rows = []
    for name, matrix in stored.items():
        takes, dense = matrix.storage, Dense(weights).storage
        for batch in BATCHES:
            given = jnp.asarray(random.standard_normal((batch, inputs), np.float32))
            exact = _seconds(functools.partial(multiply, Dense(jnp.asarray(weights)), given))
            seconds = _seconds(
                functools.partial(multiply, jax.tree.map(jnp.asarray, matrix), given)
            )
            rows.append(
                {
                    "method": name,
                    "batch": batch,
                    "ideal": takes.ideal_bits / dense.ideal_bits,
                    "bytes": takes.bytes / dense.bytes,
                    "dense_seconds": exact,
                    "time": seconds / exact,
                }
            )
    return rows


def measure(*, quick: bool) -> dict[str, Any]:
    rows, timed = [], []
    for name, shape in (QUICK if quick else SHAPES).items():
        for spectrum, values in spectra(shape, SEED).items():
            for inputs, power in (("white", 0.0), ("1/i", 1.0)):
                layer = Layer(shape, values, moments_of(shape[0], power), SEED)
                common = {
                    "layer": name, "shape": shape, "spectrum": spectrum, "inputs": inputs,
                    "kurtosis": kurtosis(layer.weights),
                    "stable_rank": float(np.sum(values**2) / values[0] ** 2),
                }  # fmt: skip
                for share in SHARES:
                    for method, (weights, outputs, ideal, real) in methods(layer, share).items():
                        rows.append(
                            common
                            | {"share": share, "method": method, "weight_error": weights}
                            | {"output_error": outputs, "ideal": ideal, "real": real}
                        )
        timed += [{"layer": name} | row for row in times(shape, 1 / 8)]
        print(f"{name}: done", flush=True)
    return {"outputs": OUTPUTS, "rows": rows, "times": timed}


def draw(numbers: dict[str, Any]) -> Figure:
    rows = numbers["rows"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    kinds = list(dict.fromkeys(row["spectrum"] for row in rows))
    figure, axes = panels(len(layers) * len(kinds), columns=len(kinds), width=4.2, height=3.2)
    places = [(layer, kind) for layer in layers for kind in kinds]
    for panel, (layer, kind) in zip(axes, places, strict=True):
        there = [row for row in rows if (row["layer"], row["spectrum"]) == (layer, kind)]
        for method, style in zip(
            ("data-agnostic", "data-driven", "rounded", "sparse", "wanda", "gptq"), SERIES,
            strict=False,
        ):  # fmt: skip
            for inputs, width in (("white", 1.0), ("1/i", 2.2)):
                of = (method, inputs)
                line = [
                    (row["ideal"], row["output_error"])
                    for row in there
                    if (row["method"], row["inputs"]) == of
                ]
                label = method if inputs == "white" else None
                if line:
                    xs, ys = zip(*line, strict=True)
                    panel.plot(xs, ys, **style, markersize=4, linewidth=width, label=label)
        panel.axhline(1.0, **LIMIT)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("bits / dense")
        panel.set_ylabel("error of the outputs")
        panel.set_title(f"{layer}: {kind}", fontsize=9)
    legend_above(figure, axes[0], columns=6)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
