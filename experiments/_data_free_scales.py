"""Ways to learn the scales of a layer, and its codes: what is lost on the calibration beside
rounding to nearest, and what it costs.

By gradients, scales alone or the weights too are moved by Adam through a rounding whose derivative
is taken for one, and the best of all steps is kept.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from _data_free import Network
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory.networks import Observation, survey
from lowrank_theory.quantisation import coordinate_descent, gptq, round_to_nearest
from lowrank_theory.recovery import dense_float64

BITS = (3, 2)
STEPS, RATE = 300, 0.01
NEAREST = "nearest, by the weights"


def ways(network: Network, seen: Observation, *, limit: int | None) -> dict[str, Any]:
    """Of all layers, a grid for each output: the geometric mean, and the largest, of the losses
    over those of rounding to nearest, and the processor seconds of all, without compilation.
    """
    leaves = leaves_by_path(network.parameters)
    sites = survey(network.function, network.parameters, network.images[:2])
    lost: dict[str, dict[int, list[float]]] = {}
    seconds: dict[str, float] = {}
    for path in list(network.shifts)[:limit]:
        weights = np.asarray(sites[path].view.matrix(np.asarray(leaves[path])), np.float32)
        calibration: Any = seen[path]
        gram = np.asarray(calibration.compressed_gram(centred=True), np.float64)
        for bits in BITS:
            least = None
            for name, run in _ways(weights, gram, bits).items():
                if not name.startswith("gradient"):  # those are compiled
                    run()
                start = time.process_time()
                made = run()
                seconds[name] = seconds.get(name, 0.0) + time.process_time() - start
                errors = weights.astype(np.float64) - made
                loss = float(np.vdot(errors, gram @ errors))
                least = loss if least is None else least
                lost.setdefault(name, {}).setdefault(bits, []).append(loss / least)
        print(f"ways, {path}", flush=True)
    return {
        name: {
            "seconds": seconds[name],
            "bits": {
                str(bits): {"mean": float(np.exp(np.mean(np.log(each)))), "largest": max(each)}
                for bits, each in found.items()
            },
        }
        for name, found in lost.items()
    }


def _ways(weights: Any, gram: Any, bits: int) -> dict[str, Callable[[], np.ndarray]]:
    nearest = round_to_nearest(weights, bits)
    weighted = round_to_nearest(weights, bits, importance=np.diagonal(gram))
    scales = np.asarray(weighted.scales, np.float32)
    by_gradient = {
        f"gradient, {what}": _by_gradient(weights, gram, scales, bits, move_weights=moved)
        for what, moved in (("scales", False), ("scales and weights", True))
    }
    return {
        NEAREST: lambda: dense_float64(nearest),
        "nearest, scales by the diagonal": lambda: dense_float64(
            round_to_nearest(weights, bits, importance=np.diagonal(gram))
        ),
        **by_gradient,
        "GPTQ": lambda: dense_float64(gptq(weights, gram, nearest)),
        "GPTQ, scales by the diagonal": lambda: dense_float64(gptq(weights, gram, weighted)),
        "coordinate descent": lambda: dense_float64(coordinate_descent(weights, gram, weighted)),
    }


def _by_gradient(
    weights: Any, gram: Any, scales: Any, bits: int, *, move_weights: bool
) -> Callable[[], np.ndarray]:
    size, middle = np.abs(weights).mean(), 2.0 ** (bits - 1)
    moments = jnp.asarray(gram / np.trace(gram) * len(gram), jnp.float32)

    def made(parameters: Any) -> Any:
        moved, logarithms = parameters
        scale = jnp.exp(logarithms)
        places = jnp.clip(moved / scale, -middle, middle - 1)
        return scale * (places + jax.lax.stop_gradient(jnp.round(places) - places))

    def loss(parameters: Any) -> Any:
        errors = (weights - made(parameters)) / size
        return jnp.sum(errors * jnp.matmul(moments, errors)) / errors.shape[1]

    of_weights = optax.adam(RATE * float(size)) if move_weights else optax.set_to_zero()
    optimiser = optax.multi_transform({"w": of_weights, "s": optax.adam(RATE)}, ("w", "s"))

    def step(state: Any, _: Any) -> tuple[Any, None]:
        parameters, moments, best, least = state
        value, slopes = jax.value_and_grad(loss)(parameters)
        best = jax.tree.map(lambda new, old: jnp.where(value < least, new, old), parameters, best)
        changes, moments = optimiser.update(slopes, moments)
        moved = optax.apply_updates(parameters, changes)
        return (moved, moments, best, jnp.minimum(value, least)), None

    def run(parameters: Any) -> Any:
        start = parameters, optimiser.init(parameters), parameters, jnp.asarray(jnp.inf)
        return made(jax.lax.scan(step, start, None, STEPS)[0][2])

    start = jnp.asarray(weights), jnp.log(jnp.asarray(scales))
    compiled = jax.jit(run).lower(start).compile()
    return lambda: np.asarray(compiled(start), np.float64)
