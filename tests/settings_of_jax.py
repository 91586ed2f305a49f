"""Every verb under one setting of JAX: `test_settings.py` runs this file in a process of its own.

`python settings_of_jax.py jax_debug_nans=True` prints what fails there.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_theory as lrt
from lowrank_theory import rank_choice, recovery
from lowrank_theory.calibration import Calibration, TriangularCalibration
from lowrank_theory.networks import Options, Parameters, allocate, compress, observe

RANDOM = np.random.default_rng(0)
W, X, B = (RANDOM.standard_normal(s).astype(np.float32) for s in ((8, 6), (40, 8), (6,)))
RELU = np.maximum(X @ W, 0)
KEY_DATA = np.asarray([0, 7], np.uint32)


def key() -> Any:
    """A new one for each use: they may be used once."""
    return jax.random.wrap_key_data(jnp.asarray(KEY_DATA))


def layer(**more: Any) -> lrt.Observed:
    return lrt.Observed(weights=W, activations=X, **more)


def network(parameters: Any, batch: Any) -> Any:
    return jnp.tanh(jnp.matmul(batch, parameters["w"]))


def problem() -> Any:
    return lrt.Setting(samples=40, inputs=8, outputs=6, rank=2).draw(key=key())


def found() -> lrt.Recovery:
    return lrt.recover(layer(bias=B), 3, lrt.ActivationWeighted())


def errors() -> Any:
    drawn = problem()
    made = lrt.recover(drawn.observed, 2, lrt.ActivationWeighted())
    return lrt.output_error(made, drawn.truth), lrt.weight_error(made, drawn.truth)


def products() -> Any:
    factors = found().factors
    sums = [2 * factors, factors / 2, -factors, factors + factors, factors - factors]
    return [X @ factors, jnp.asarray(X) @ factors, factors @ W.T, factors.materialise(), *sums]


def sharded() -> Any:
    mesh = jax.make_mesh((1,), ("rows",))
    statistics = lrt.ShardedCalibration(Calibration.empty(8), mesh, "rows").update(X).combined()
    layers = lrt.recover_layers([layer(), layer()], 2, lrt.ActivationWeighted(), mesh, "rows")
    return statistics, layers


def seen(kind: Any) -> Any:
    return kind.empty(8).update(X)


CURVES = [Options.of_ranks(np.geomspace(1, 1e-3, 7), 14, 0, 48)] * 2
ATTACKED = next(
    statement for statement in lrt.theorems.STATEMENTS.values() if statement.adversary is not None
)
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "TruncatedSVD": (lrt.TruncatedSVD(), {}),
    "ActivationWeighted": (lrt.ActivationWeighted(), {}),
    "ActivationWeighted, affine": (lrt.ActivationWeighted(), {"bias": B}),
    "Randomized": (lrt.Randomized(key=jax.random.key(7)), {}),
    "Ridge": (lrt.Ridge(0.1), {}),
    "SingularValueThreshold": (lrt.SingularValueThreshold(0.1), {}),
    "RankPenalised": (recovery.RankPenalised(0.1), {}),
    "OptimalShrinkage": (recovery.OptimalShrinkage(), {}),
    "NuclearNormRelu": (recovery.NuclearNormRelu(1.0, max_steps=20), {"outputs": RELU}),
    "CensoredLikelihood": (
        recovery.CensoredLikelihood(0.1, 9.0, 0.1, max_steps=20),
        {"outputs": RELU},
    ),
    "NuclearNormBall": (recovery.NuclearNormBall(1.0), {}),
    "WeightNuclearNormBall": (recovery.WeightNuclearNormBall(1.0, max_steps=20), {}),
    "WeightNuclearNormPenalty": (recovery.WeightNuclearNormPenalty(0.1, max_steps=20), {}),
    "ASVD": (recovery.ASVD(), {}),
    "COALA": (recovery.COALA(), {}),
    "CorDA": (recovery.CorDA(), {}),
    "DRONE": (recovery.DRONE(), {}),
    "DiagonalQERA": (recovery.DiagonalQERA(), {}),
    "ESPACE": (recovery.ESPACE(), {}),
    "QERA": (recovery.QERA(), {}),
    "SVDLLM": (recovery.SVDLLM(), {}),
}


def recovered(method: Any, more: dict[str, Any]) -> Callable[[], Any]:
    return lambda: lrt.recover(layer(**more), 2, method)


ENTRIES: dict[str, Callable[[], Any]] = {
    **{f"recover {name}": recovered(*found) for name, found in METHODS.items()},
    "every rank": lambda: lrt.every_rank(layer(bias=B), lrt.ActivationWeighted()).at(2),
    "calibrate": lambda: lrt.calibrate(np.array_split(X, 7), Calibration.empty(8)).gram(),
    "calibrate triangles": lambda: lrt.calibrate([X, X], TriangularCalibration.empty(8)).gram(),
    "update": lambda: Calibration.empty(8, compressed=True).update(X, 0.9 * X).cross_gram(),
    "merge": lambda: seen(Calibration).merge(seen(Calibration)),
    "merge triangles": lambda: seen(TriangularCalibration).merge(seen(TriangularCalibration)),
    "from a calibration": lambda: lrt.recover(
        lrt.Observed(weights=W, bias=B, calibration=seen(Calibration)), 2, lrt.ActivationWeighted()
    ),
    "from a triangle": lambda: lrt.recover(
        lrt.Observed(weights=W, calibration=seen(TriangularCalibration)),
        2,
        lrt.ActivationWeighted(),
    ),
    "energy": lambda: rank_choice.energy(layer(), 0.9),
    "hard threshold": lambda: rank_choice.hard_threshold(layer()),
    "screenot": lambda: rank_choice.screenot(layer(), 2),
    "certify": lambda: lrt.certify(
        layer(), found(), held_out=X[:20] + np.float32(1), failure_probability=0.05
    ),
    "certify losses": lambda: lrt.certify_losses(np.linspace(0.01, 0.1, 50), 0.05),
    "draw": problem,
    "errors": errors,
    "fitting errors": lambda: lrt.relative_fitting_error(found(), layer()),
    "products": products,
    "verify": lambda: lrt.verify(lrt.theorems.best_possible, trials=2, key=key()),
    "attack": lambda: lrt.attack(ATTACKED, key=key(), restarts=1, steps=2),
    "bound": lambda: lrt.theorems.planted_rank.gaussian.bound(problem()),
    "observe": lambda: observe(network, {"w": W}, [X]),
    "compress": lambda: compress(network, {"w": W}, [X], Parameters(0.7)),
    "allocate": lambda: allocate(CURVES, 60),
    "sharded": sharded,
}


def set_to(setting: str) -> None:
    name, value = setting.split("=")
    if name == "mesh":  # one that the user has set, as `jax.make_mesh` makes it
        jax.set_mesh(jax.make_mesh((1,), ("rows",)))
    else:
        jax.config.update(name, {"True": True}.get(value, value))  # noqa: TID251 - as users do


def computed(entry: Callable[[], Any]) -> None:
    """Call it, and wait for its arrays: some checks come late."""
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(entry()) if hasattr(leaf, "dtype")])


def main(setting: str) -> int:
    """How many entries fail."""
    set_to(setting)
    failed = 0
    for name, entry in ENTRIES.items():
        try:
            computed(entry)
        except Exception:  # noqa: BLE001 - whatever it is, it is shown
            failed += 1
            print(f"{name} fails under {setting}:\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1])))
