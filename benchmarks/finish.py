"""The low-rank layer from what was accumulated, and from the activations, beside other sequences.

All start from the same numbers in the memory of the same device: the float64 Gram for those that
use it, the triangular factor for COALA, or the activations for both.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_theory as lrt
from _layers import power_law
from _measure import REPETITIONS, Call, Case, Row, interleaved, paired, row, wait
from _peers import (
    Library,
    coala,
    coala_from_triangle,
    numpy,
    optimum,
    output_error,
    randomized_svd,
    svd_llm,
    torch,
)
from lowrank_theory.calibration import Calibration
from lowrank_theory.recovery import AbstractMethod, Randomized

SEED = 0
EXACT_RANK, RANDOMIZED_RANK = 256, 128
EXCESS, FAILURE_PROBABILITY = 0.01, 1e-6
TARGETS = {  # of the ratio to SVD-LLM's sequence, for 2048 inputs
    "exact": 2.0,
    "randomized": 8.0,
}


def methods() -> dict[str, tuple[AbstractMethod, int]]:
    """Our two routes, each with its rank."""
    sketch = Randomized(
        excess=EXCESS, failure_probability=FAILURE_PROBABILITY, key=jax.random.key(SEED)
    )
    return {
        "exact": (lrt.ActivationWeighted(), EXACT_RANK),
        "randomized": (sketch, RANDOMIZED_RANK),
    }


def libraries() -> list[Library]:
    """In which the others are written: on a GPU only what runs there."""
    found = [torch()] if jax.default_backend() == "gpu" else [numpy(), torch()]
    return [library for library in found if library is not None]


def _from_statistics(
    route: str, inputs: int, decay: float, rank_share: int, repetitions: int, every_peer: bool
) -> list[Row]:
    weights, activations = power_law(inputs, decay, SEED)
    calibration = Calibration.empty(inputs).update(jnp.asarray(activations))
    gram = np.asarray(calibration.gram())
    method, rank = methods()[route]
    rank = rank // rank_share
    observed = lrt.Observed(weights=jnp.asarray(weights), calibration=calibration)
    peers: dict[str, Call] = {}
    for library in libraries():
        w, g = library.single(weights), library.double(gram)
        peers[f"SVD-LLM, {library.name}"] = functools.partial(svd_llm, library, w, g, rank)
        if every_peer:
            r = library.triangle(library.single(activations))
            peers[f"COALA, {library.name}"] = functools.partial(
                coala_from_triangle, library, w, r, rank
            )
    name = f"{type(method).__name__}, rank {rank}"
    rows = _compare(
        name,
        functools.partial(lrt.recover, observed, rank, method),
        peers,
        (weights, gram, rank),
        repetitions,
    )
    for one in rows:
        aimed = inputs == 2048 and one["peer"].startswith("SVD-LLM")
        one |= {"route": route, "inputs": inputs, "decay": decay}
        one["target"] = TARGETS[route] if aimed else None
    return rows


def _from_activations(
    route: str, inputs: int, decay: float, rank_share: int, repetitions: int
) -> list[Row]:
    weights, activations = power_law(inputs, decay, SEED)
    w, x = jnp.asarray(weights), jnp.asarray(activations)
    method, rank = methods()[route]
    rank = rank // rank_share

    def ours() -> lrt.Recovery:
        calibration = Calibration.empty(inputs).update(x)
        return lrt.recover(lrt.Observed(weights=w, calibration=calibration), rank, method)

    peers: dict[str, Call] = {}
    if route == "exact":
        for library in libraries():
            arrays = library.single(weights), library.single(activations)
            peers[f"COALA, {library.name}"] = functools.partial(coala, library, *arrays, rank)
    elif jax.default_backend() != "gpu":
        peers["scikit-learn's randomized_svd"] = functools.partial(
            randomized_svd, weights, activations, rank, SEED
        )
    gram = np.asarray(Calibration.empty(inputs).update(x).gram())
    name = f"Calibration, {type(method).__name__}, rank {rank}"
    return _compare(name, ours, peers, (weights, gram, rank), repetitions)


def _compare(
    name: str, ours: Call, peers: dict[str, Call], layer: tuple[Any, Any, int], repetitions: int
) -> list[Row]:
    """A row for each peer; what the warm-up returns is what the errors are of."""
    weights, gram, rank = layer
    best = optimum(weights, gram, (rank,))[rank]

    def error(factors: Any) -> float:
        return output_error(weights, gram, factors) / best

    recovery = wait(ours())
    ours_error = error((recovery.factors.left, recovery.factors.right))
    errors = {peer: error(call()) for peer, call in peers.items()}
    seconds = interleaved({name: ours, **peers}, repetitions)
    return [
        row(
            ours=name,
            peer=peer,
            **paired(seconds[name], seconds[peer]),
            ours_error=ours_error,
            peer_error=errors[peer],
            certified=bool(recovery.certificate.certified),
            seed=SEED,
        )
        for peer in peers
    ]


def cases(*, quick: bool) -> list[Case]:
    sizes = (64,) if quick else (1024, 2048, 4096)
    found = []
    for inputs in sizes:
        large = inputs > 2048
        repetitions = 2 if quick else 3 if large else REPETITIONS
        share = 16 if quick else 1  # ranks in proportion to the layer
        cost = (inputs / 2048) ** 3
        for decay in (1.0,) if large or quick else (0.5, 1.0):
            place = f"{inputs} x {inputs}, decay {decay:g}"
            found += [
                Case(
                    f"finish, {route}, {place}",
                    (22 if large else 45) * cost,
                    functools.partial(
                        _from_statistics, route, inputs, decay, share, repetitions, not large
                    ),
                )
                for route in TARGETS
            ]
            if not large:
                found += [
                    Case(
                        f"calibrate and finish, {route}, {place}",
                        40 * cost,
                        functools.partial(
                            _from_activations, route, inputs, decay, share, repetitions
                        ),
                    )
                    for route in TARGETS
                    if decay == 1.0
                ]
    return found
