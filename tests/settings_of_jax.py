"""Every verb under one setting of JAX: `test_settings.py` runs this file in a process of its own.

`python settings_of_jax.py jax_debug_nans=True` prints what fails, and ends with how many did.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import lowrank_theory as lrt
from lowrank_theory import rank_choice
from lowrank_theory.calibration import Calibration, TriangularCalibration
from lowrank_theory.networks import LayerError, Parameters, allocate, compress, observe
from lowrank_theory.recovery import published

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


def recovery() -> lrt.Recovery:
    return lrt.recover(layer(bias=B), 3, lrt.ActivationWeighted())


def errors() -> Any:
    drawn = problem()
    found = lrt.recover(drawn.observed, 2, lrt.ActivationWeighted())
    return lrt.output_error(found, drawn.truth), lrt.weight_error(found, drawn.truth)


def products() -> Any:
    factors = recovery().factors
    sums = [2 * factors, factors / 2, -factors, factors + factors, factors - factors]
    return [X @ factors, jnp.asarray(X) @ factors, factors @ W.T, factors.materialise(), *sums]


def sharded() -> Any:
    mesh = jax.make_mesh((1,), ("rows",))
    seen = lrt.ShardedCalibration(Calibration.empty(8), mesh, "rows").update(X).combined()
    found = lrt.recover_layers([layer(), layer()], 2, lrt.ActivationWeighted(), mesh, "rows")
    return seen, found


METHODS = {
    "TruncatedSVD": lambda: lrt.TruncatedSVD(),
    "ActivationWeighted": lambda: lrt.ActivationWeighted(),
    "Randomized": lambda: lrt.Randomized(key=key()),
    "Ridge": lambda: lrt.Ridge(0.1),
    "SingularValueThreshold": lambda: lrt.SingularValueThreshold(0.1),
}
METHODS |= {
    name: getattr(lrt, name)
    for name in ("Shrinkage", "ASVD", "SVDLLM")
    if hasattr(lrt, name)
}
