"""What rounding does to every route, where a few directions dominate float32 activations.

The largest error over the optimum among several seeds, all in float64. Where a route of ours
certifies its result, the error is what it promises; where it does not, the row says so.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

import lowrank_theory as lrt
from _layers import outliers
from _measure import Case, Row, row
from _peers import coala, dense, numpy, plain_svd, randomized_svd, svd_llm, svd_llm_v2
from finish import methods
from lowrank_theory.calibration import Calibration, TriangularCalibration

SEEDS = range(5)
RATIOS = (1.0, 30.0, 300.0, 1e3, 1e4, 1e5)
RANK = 48
WITHIN = 1.001  # of the optimum, where certified; of a sketch, what it was asked for

Route = Callable[[np.ndarray, np.ndarray], Any]


def _ours() -> dict[str, Route]:
    sketch, _ = methods()["randomized"]

    def observed(weights: Any, activations: Any, start: Any) -> lrt.Observed:
        seen = start(activations.shape[1])
        for batch in np.split(activations, 4):
            seen = seen.update(jnp.asarray(batch))
        return lrt.Observed(weights=jnp.asarray(weights), calibration=seen)

    def route(start: Any, method: Any) -> Route:
        return lambda w, x: lrt.recover(observed(w, x, start), RANK, method)

    def rows(weights: np.ndarray, activations: np.ndarray) -> lrt.Recovery:
        return lrt.recover(
            lrt.Observed(weights=weights, activations=activations), RANK, lrt.ActivationWeighted()
        )

    return {
        "ActivationWeighted, the rows at hand": rows,
        "ActivationWeighted, Calibration": route(Calibration.empty, lrt.ActivationWeighted()),
        "ActivationWeighted, TriangularCalibration": route(
            TriangularCalibration.empty, lrt.ActivationWeighted()
        ),
        "Randomized, Calibration": route(Calibration.empty, sketch),
    }


def _peers() -> dict[str, Route]:
    library = numpy()
    return {
        "SVD of the weights": lambda w, _: plain_svd(library, w, RANK),
        "COALA": lambda w, x: coala(library, w, x, RANK),
        "SVD-LLM": lambda w, x: svd_llm(library, w, x.T @ x, RANK),
        "SVD-LLM v2": lambda w, x: svd_llm_v2(library, w, x.T @ x, RANK),
        "scikit-learn's randomized_svd": lambda w, x: randomized_svd(w, x, RANK, 0),
    }


def _error(weights: np.ndarray, activations: np.ndarray, factors: Any) -> float:
    """The output error over the optimum, from the rows, in float64."""
    inputs, layer = activations.astype(np.float64), weights.astype(np.float64)
    values = scipy.linalg.svd(inputs @ layer, compute_uv=False, lapack_driver="gesvd")
    change = inputs @ (layer - dense(factors))
    return float(np.linalg.norm(change) / np.linalg.norm(values[RANK:]))


def _measure(ratio: float, blind: bool, seeds: range) -> list[Row]:
    layers = [outliers(ratio, seed, blind=blind) for seed in seeds]
    rows = []
    for name, route in _ours().items():
        recoveries = [route(*layer) for layer in layers]
        certified = [bool(recovery.certificate.certified) for recovery in recoveries]
        errors = [
            _error(*layer, (recovery.factors.left, recovery.factors.right))
            for layer, recovery in zip(layers, recoveries, strict=True)
        ]
        sure = [error for error, holds in zip(errors, certified, strict=True) if holds]
        rows.append(
            row(
                ours=name,
                ours_error=max(errors),
                certified=all(certified),
                certified_seeds=sum(certified),
                certified_error=max(sure, default=None),
                seeds=len(layers),
                seed=seeds.start,
                outliers=ratio,
                blind=blind,
            )
        )
    for name, route in _peers().items():
        errors, failures = [], 0
        for layer in layers:
            try:
                with np.errstate(all="ignore"):
                    error = _error(*layer, route(*layer))
            except (np.linalg.LinAlgError, ValueError):
                error = float("nan")
            if np.isfinite(error):
                errors.append(error)
            else:
                failures += 1
        rows.append(
            row(
                peer=name,
                peer_error=max(errors, default=None),
                failures=failures,
                seeds=len(layers),
                seed=seeds.start,
                outliers=ratio,
                blind=blind,
            )
        )
    return rows


def cases(*, quick: bool) -> list[Case]:
    ratios = (1.0, 1e5) if quick else RATIOS
    seeds = SEEDS[:2] if quick else SEEDS
    return [
        Case(
            f"accuracy, {kind}ratio {ratio:g}",
            10,
            functools.partial(_measure, ratio, bool(kind), seeds),
        )
        for kind in ("", "blind weights, ")
        for ratio in ratios
    ]
