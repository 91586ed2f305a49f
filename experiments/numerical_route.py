"""What float32 costs the Gram route and the triangular route, and what was proved of it.

Float32, outputs with two massive directions over a decaying bulk, rank 8 of 48. The Gram route
loses what lies below the root of the unit roundoff: 37 % at a ratio of a thousand, where the
triangular route loses 2e-8; both stay below their bounds, computed from the realised perturbation.

python experiments/numerical_route.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, run
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.theorems.numerical_route import Perturbed, numerical_route

SEED = 12
SAMPLES, SIZE, RANK = 256, 48, 8
RATIOS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
MASSIVE = 2


def _outputs(random: np.random.Generator, ratio: float) -> np.ndarray:
    """A bulk decaying from one, and massive directions spread over all outputs; as stored."""
    values = np.arange(1, SIZE + 1) ** -1.0
    values[:MASSIVE] *= ratio
    left, _ = np.linalg.qr(random.standard_normal((SAMPLES, SIZE)))
    right, _ = np.linalg.qr(random.standard_normal((SIZE, SIZE)))
    return ((left * values) @ right.T).astype(np.float32).astype(np.float64)


def _gram_change(outputs: np.ndarray) -> np.ndarray:
    single = jnp.asarray(outputs, jnp.float32)
    gram = np.asarray(jnp.matmul(single.T, single, precision="highest"), np.float64)
    change = gram - outputs.T @ outputs
    return (change + change.T) / 2


def _outputs_change(outputs: np.ndarray) -> np.ndarray:
    """The least perturbation of the outputs whose triangular factor is the one computed."""
    triangle = np.asarray(jnp.linalg.qr(jnp.asarray(outputs, jnp.float32), mode="r"), np.float64)
    left, _, right = np.linalg.svd(outputs @ triangle.T, full_matrices=False)
    return left @ right @ triangle - outputs


@jax.jit
def _sides(instance: Perturbed) -> Any:
    """Squared optimum; excess and bound of either route, the first of which are squared."""
    sides = []
    for statement in (numerical_route.gram, numerical_route.triangular):
        estimate = statement.estimate(instance)
        sides += [statement.loss(instance, estimate), statement.formula(instance, estimate)]
    values = jnp.linalg.svd(instance.outputs, compute_uv=False)
    return jnp.linalg.norm(values[RANK:]), *sides


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 3 if quick else 20
    rows = []
    for index, ratio in enumerate(RATIOS):
        random = np.random.default_rng((SEED, index))
        columns = []
        for _ in range(trials):
            outputs = _outputs(random, ratio)
            change, triangular = _gram_change(outputs), _outputs_change(outputs)
            with jax.enable_x64(True):
                sides = _sides(Perturbed(outputs, change, triangular, RANK))
                columns.append([float(side) for side in sides])
        optimum, excess, bound, direct, direct_bound = np.array(columns).T

        def relative(square: np.ndarray, optimum: np.ndarray = optimum) -> float:
            return float(np.median(np.sqrt(1 + np.maximum(square, 0) / optimum**2) - 1))

        rows.append(
            {
                "ratio": ratio,
                "gram_excess": relative(excess),
                "gram_bound": relative(bound),
                "triangular_excess": float(np.median(np.maximum(direct, 0) / optimum)),
                "triangular_bound": float(np.median(direct_bound / optimum)),
                "gram_largest_part": float(np.max(excess / bound)),
                "triangular_largest_part": float(np.max(direct / direct_bound)),
            }
        )
    return {"samples": SAMPLES, "size": SIZE, "rank": RANK, "trials": trials, "rows": rows}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=6.5, height=4.4)
    rows = numbers["rows"]
    ratio = column(rows, "ratio")
    for name, style, label in (
        ("gram_bound", SERIES[1], "Gram route: bound"),
        ("gram_excess", SERIES[0], "Gram route: excess"),
        ("triangular_bound", SERIES[3], "triangular route: bound"),
        ("triangular_excess", SERIES[2], "triangular route: excess"),
    ):
        values = np.maximum(column(rows, name), 1e-16)
        panel.plot(ratio, values, **style, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(5e-17, None)
    panel.set_xlabel("massive directions of the outputs / bulk (no unit)")
    panel.set_ylabel("excess error / optimum, in float32")
    legend_above(figure, panel, 2)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
