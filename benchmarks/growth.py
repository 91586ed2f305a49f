"""How the cost of every stage grows with the inputs, the rank and the samples; ours alone."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import lowrank_theory as lrt
from _layers import power_law
from _measure import Call, Case, Row, interleaved, row, wait
from finish import methods
from lowrank_theory.calibration import Calibration

SEED = 0
DECAY = 1.0


def _seconds(calls: dict[str, Call], repetitions: int) -> dict[str, float]:
    for call in calls.values():
        wait(call())
    return {name: float(np.median(s)) for name, s in interleaved(calls, repetitions).items()}


def _layer(inputs: int) -> tuple[Any, Any]:
    """Weights, and one batch of as many rows as inputs: eight batches cost what eight times one
    does.
    """
    if inputs <= 4096:
        weights, activations = power_law(inputs, DECAY, SEED)
    else:  # the time is the same, and the cosines would not fit
        random = np.random.default_rng(SEED)
        weights = random.standard_normal((inputs, inputs), np.float32)
        activations = random.standard_normal((inputs, inputs), np.float32)
        activations *= np.arange(1, inputs + 1, dtype=np.float32) ** -DECAY
    return jnp.asarray(weights), jnp.asarray(activations[:inputs])


def _by_inputs(inputs: int, repetitions: int) -> list[Row]:
    weights, batch = _layer(inputs)
    start = Calibration.empty(inputs)
    seen = start.update(batch)
    observed = lrt.Observed(weights=weights, calibration=seen)
    rank = inputs // 16
    calls: dict[str, Call] = {f"update, {inputs} rows": lambda: start.update(batch)}
    for method, _ in methods().values():
        name = f"{type(method).__name__}, rank {rank}"
        calls[name] = functools.partial(lrt.recover, observed, rank, method)
    seconds = _seconds(calls, repetitions)
    return [
        row(ours=name, ours_s=spent, inputs=inputs, seed=SEED, stage=name.partition(",")[0])
        for name, spent in seconds.items()
    ]


def _by_rank(inputs: int, ranks: tuple[int, ...], repetitions: int) -> list[Row]:
    weights, batch = _layer(inputs)
    seen = Calibration.empty(inputs).update(batch)
    observed = lrt.Observed(weights=weights, calibration=seen)
    rows = []
    for rank in ranks:
        calls: dict[str, Call] = {
            type(method).__name__: functools.partial(lrt.recover, observed, rank, method)
            for method, _ in methods().values()
        }
        seconds = _seconds(calls, repetitions)
        rows += [
            row(ours=f"{name}, rank {rank}", ours_s=spent, rank=rank, seed=SEED, stage=name)
            for name, spent in seconds.items()
        ]
    return rows


def _by_samples(inputs: int, samples: tuple[int, ...], repetitions: int) -> list[Row]:
    batch = _layer(inputs)[1]

    def calibrated(count: int) -> Calibration:
        seen = Calibration.empty(inputs)
        for _ in range(count // inputs):
            seen = seen.update(batch)
        return seen

    calls: dict[str, Call] = {
        f"update, {count} rows": functools.partial(calibrated, count) for count in samples
    }
    seconds = _seconds(calls, repetitions)
    return [
        row(ours=name, ours_s=seconds[name], samples=count, seed=SEED, stage="update")
        for name, count in zip(calls, samples, strict=True)
    ]


def cases(*, quick: bool) -> list[Case]:
    sizes = (32, 64) if quick else (256, 512, 1024, 2048, 4096, 8192)
    middle = 64 if quick else 1024
    ranks = tuple(middle // share for share in (64, 16, 4, 2))
    samples = tuple(middle * count for count in ((1, 4) if quick else (4, 16, 64)))
    repetitions = 2 if quick else 3
    return [
        *(
            Case(
                f"growth, {inputs} inputs",
                150 * (inputs / 8192) ** 3 + 3,
                functools.partial(_by_inputs, inputs, 1 if inputs > 4096 else repetitions),
            )
            for inputs in sizes
        ),
        Case(
            f"growth, rank, {middle} inputs",
            15,
            functools.partial(_by_rank, middle, ranks, repetitions),
        ),
        Case(
            f"growth, samples, {middle} inputs",
            10,
            functools.partial(_by_samples, middle, samples, repetitions),
        ),
    ]
