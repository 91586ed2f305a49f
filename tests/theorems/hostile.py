"""Layers at the edge of what a statement speaks of, for every kind of instance that there is."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lowrank_theory.perturbations import Perturbation
from lowrank_theory.problems import Layer, Observed, Problem, Truth

Array = np.ndarray
YES = np.asarray(True)


def _of(name: str) -> Any:
    return importlib.import_module(f"lowrank_theory.theorems.{name}")


class Numbers:
    """$X$, $M$, $E$ with entries of size `noise`, a rank."""

    def __init__(self, m: int = 8, n: int = 4, k: int = 3, rank: int = 2, noise: float = 0.1):
        random = np.random.default_rng(0)
        self.rows = random.standard_normal((m, n))
        self.target = random.standard_normal((n, rank)) @ random.standard_normal((rank, k))
        self.noise = noise * random.standard_normal((m, k))
        self.scale, self.rank = noise, rank

    def times(self, rows: float = 1.0, target: float = 1.0) -> "Numbers":
        """In other units, of inputs and of weights; those of the outputs follow."""
        self.rows, self.target = rows * self.rows, target * self.target
        self.noise, self.scale = rows * target * self.noise, rows * target * self.scale
        return self

    def stored(self, dtype: Any) -> "Numbers":
        for name in ("rows", "target", "noise"):
            setattr(self, name, getattr(self, name).astype(dtype))
        return self


def _changed(**changes: Any) -> Numbers:
    numbers = Numbers()
    for name, change in changes.items():
        setattr(numbers, name, change(getattr(numbers, name)))
    return numbers


def _column(matrix: Array, value: float) -> Array:
    return np.where(np.arange(matrix.shape[1]) == 0, value, matrix)


def hostile(powers: tuple[int, ...] = (-300, 300)) -> dict[str, Numbers]:
    """By name; some in units of $2^k$."""
    return {
        "nothing special": Numbers(),
        "zero activations": _changed(rows=np.zeros_like),
        "zero target": _changed(target=np.zeros_like),
        "no noise": _changed(noise=np.zeros_like, scale=lambda _: 0.0),
        "all zero": Numbers().times(0.0, 0.0),
        "constant columns": _changed(rows=np.ones_like),
        "dead input": _changed(rows=lambda rows: _column(rows, 0.0)),
        "massive input that the target ignores": _changed(
            rows=lambda rows: rows * np.r_[1e9, 1.0, 1.0, 1.0],
            target=lambda target: target * np.r_[0.0, 1.0, 1.0, 1.0][:, None],
        ),
        "one row": Numbers(m=1, rank=1),
        "one input": Numbers(n=1, rank=1),
        "one output": Numbers(k=1, rank=1),
        "one of each": Numbers(1, 1, 1, 1),
        "full rank": Numbers(n=3, k=3, rank=3),
        "fewer rows than inputs": Numbers(m=3, n=5, k=4),
        "float32": Numbers().stored(np.float32),
        "ill-conditioned, in float32": _changed(
            rows=lambda rows: np.linalg.svd(rows)[0][:, :4] * 10.0 ** -np.arange(0, 12, 3)
        ).stored(np.float32),
        **{f"inputs times 2^{k}": Numbers().times(rows=2.0**k) for k in powers},
        **{f"weights times 2^{k}": Numbers().times(target=2.0**k) for k in powers},
        **{f"both times 2^{k}": Numbers().times(2.0**k, 2.0**k) for k in powers},
    }


def _problem(given: Numbers, link: Any = None, seen: Array | None = None) -> Problem:
    clean = given.rows @ given.target
    outputs = clean + given.noise if link is None else link(clean, given.noise)
    weights = np.linalg.pinv(given.rows) @ outputs if link is None else None
    observed = Observed(
        weights=None if weights is None else weights.astype(given.rows.dtype),
        activations=given.rows if seen is None else seen,
        compressed_activations=None if seen is None else given.rows,
        outputs=outputs,
    )
    return Problem(observed, _truth(given, given.noise), given.rank)


def _truth(given: Numbers, noise: Array, stretched: float = 1.0) -> Truth:
    second_moment = stretched * given.rows.T @ given.rows / len(given.rows)
    scale = np.asarray(given.scale)
    return Truth(given.target, noise, given.rows, scale, YES, YES, second_moment, YES, YES)


def _orientations(given: Numbers, rank: int) -> Any:
    inputs, outputs = given.target.shape
    seen, values = (np.linalg.svd(each, compute_uv=False) for each in (given.rows, given.target))
    random = np.random.default_rng(2).standard_normal((40, inputs, min(inputs, outputs)))
    bases = np.linalg.qr(random)[0].astype(given.rows.dtype)
    seen = np.pad(seen, (0, inputs - seen.size))
    return _of("orientation").Orientations(seen, values, bases, rank, YES)


def _fresh(given: Numbers) -> Problem:
    observed = Observed(weights=given.target, activations=given.rows)
    return Problem(observed, _truth(given, 0 * given.noise, 1.1), given.rank)


def instances(given: Numbers) -> Iterator[tuple[str, Any]]:
    """The instances that these numbers make, by the name of their type; where one cannot be built
    of them, there is none.
    """
    clean, random = given.rows @ given.target, np.random.default_rng(1)
    rows, noise, rank = given.rows, given.noise, given.rank
    outputs = clean.shape[1]
    sketch = random.standard_normal((outputs, min(outputs, rank + 2)))
    found = min(rank, *clean.shape)
    identity, basis = np.eye(rows.shape[1]), np.linalg.qr(random.standard_normal((len(rows), 1)))[0]
    size = float(np.max(np.abs(clean), initial=0.0))
    losses = np.sum(np.concatenate([noise, noise]) ** 2, axis=1)
    perturbing = random.standard_normal(rows.shape) * np.max(np.abs(rows), initial=0.0)
    codes = np.arange(2 * len(rows)).reshape(-1, 2) % 3
    table = np.stack([given.target, -given.target])
    makers = {
        "Problem": [
            lambda: _problem(given),
            lambda: _problem(given, seen=(rows + perturbing / 10).astype(rows.dtype)),
            lambda: _problem(given, lambda c, e: np.maximum(c, 0) + e),
            lambda: _problem(given, lambda c, e: np.maximum(c + e, 0)),
            lambda: _fresh(given),
        ],
        "Layer": [lambda: Layer(Observed(weights=given.target, activations=rows), rank)],
        "Candidate": [
            lambda: _of("_censored").Candidate(
                _problem(given, lambda c, e: np.maximum(c + e, 0)), given.target
            )
        ],
        "PriorDraw": [
            lambda: _of("minimax_floor").PriorDraw(
                _problem(given), np.asarray(size), np.asarray(size)
            )
        ],
        "RidgedLayer": [
            lambda: _of("ridge_limit").RidgedLayer(
                Layer(Observed(weights=given.target, activations=rows), rank),
                np.asarray(0.1 * np.max(np.abs(rows)) ** 2),
            )
        ],
        "Perturbation": [lambda: Perturbation(clean, noise, rank)],
        "Perturbed": [
            lambda: _of("numerical_route").Perturbed(clean, noise.T @ noise, noise, rank)
        ],
        "Sketched": [
            lambda power=power: _of("_sketches").Sketched(
                clean, sketch, power, True, found, independent=True
            )
            for power in (0, 1)
        ],
        "Probed": [lambda: _of("_sketches").Probed(clean, sketch, sketch + 1, 4, True, found)],
        "ScaledNoise": [
            lambda: _of("heteroskedastic_noise").ScaledNoise(
                random.standard_normal(clean.shape), np.abs(clean), basis, YES, YES
            )
        ],
        "Rows": [
            lambda: _of("second_moment").Rows(
                rows, 1.1 * rows.T @ rows / len(rows), YES, np.asarray(50.0)
            )
        ],
        "HeldOut": [
            lambda: _of("held_out_certificate").HeldOut(
                losses,
                np.asarray(np.max(losses)),
                np.asarray(3.0),
                YES,
                np.asarray(np.mean(losses)),
            )
        ],
        "Residual": [lambda: _of("white_residual").Residual(clean + noise, rank, YES, YES)],
        "SpikedMatrix": [
            lambda: _of("_spiked").SpikedMatrix(
                noise, np.array([2.0, 1.0, 0.5])[:rank], np.asarray(given.scale), YES
            )
        ],
        "UnequalProblem": [
            lambda: _of("unequal_noise").UnequalProblem(
                _problem(given),
                np.full(len(rows), given.scale),
                np.ones(outputs),
                YES,
            )
        ],
        "Projected": [
            lambda: _of("projected_truth").Projected(
                Layer(Observed(weights=given.target, activations=rows), rank),
                np.linalg.qr(random.standard_normal((outputs, outputs)))[0],
            )
        ],
        "Orientations": [lambda: _orientations(given, found)],
        "RoundedLayer": [
            lambda bits=bits, group=group, axis=axis: _of("rounding").RoundedLayer(
                given.target, bits, activations=rows, group=group, axis=axis
            )
            for bits, group, axis in ((1, 2, 0), (2, None, 0), (4, 2, 1))
        ],
        "SteppedLayer": [
            lambda: _of("_stepped").SteppedLayer(
                given.target,
                rows,
                float(np.max(np.abs(given.target), initial=0.0)) / 6,
                uniform=True,
            )
        ],
        "JoinedLayers": [
            lambda bits=bits: _of("_joined").JoinedLayers(
                given.target, noise.T, rows, np.arange(1.0, outputs + 1), bits=bits
            )
            for bits in (1, 4)
        ],
        "NormalChannels": [
            lambda: _of("_normal_channels").NormalChannels(
                rows,
                rows[0],
                np.maximum(np.abs(rows[0]), 1.0),
                given.target,
                given.target[0],
                independent=True,
            )
        ],
        "RotatedWeights": [
            lambda: _of("_rotated").RotatedWeights(
                given.target, np.ones(len(given.target)), independent=True
            )
        ],
        "TangentMatrix": [
            lambda: _of("low_rank_plus_sparse").TangentMatrix(
                given.target[:, :1],
                rows[:1, :outputs],
                given.target[:1],
                given.target[:, :1],
                np.eye(len(given.target), outputs) > 0,
            )
        ],
        "FactoredLayer": [
            lambda: _of("quantised_factors").FactoredLayer(
                _of("_stepped").SteppedLayer(given.target, rows, 1.0, uniform=True),
                _of("_stepped").SteppedLayer(given.target.T, clean, 1.0, uniform=True),
            )
        ],
        "Allocation": [
            lambda: _of("rate_distortion").Allocation(np.abs(clean[:, 0]), np.ones(len(rows)))
        ],
        "CodedWeights": [
            lambda: _of("rate_distortion").CodedWeights(given.target, rows, 2, gaussian=True)
        ],
        "PrunedSet": [lambda: _of("_pruned").PrunedSet(rows, given.target[:1])],
        "Thinned": [
            lambda: _of("_pruned").Thinned(
                given.target, 1, group=2, scale=np.asarray(1.0), gaussian=True
            )
        ],
        "Sampled": [
            lambda: _of("_pruned").Sampled(
                given.target,
                rows,
                np.full_like(given.target, 0.5),
                np.full_like(given.target, 0.4),
                independent=True,
            )
        ],
        "CodedLayer": [
            lambda ridge=ridge: _of("look_up").CodedLayer(
                rows, given.target, codes, count=3, ridge=ridge
            )
            for ridge in (1.0, 100.0)
        ],
        "CodedTable": [lambda: _of("_byte_tables").CodedTable(table, codes % table.shape[1])],
        "CodedLaw": [
            lambda limit=limit: _of("_coded_rows").CodedLaw(
                rows[:, 0],
                np.stack([codes, codes[::-1]]),
                np.arange(len(rows)) // 2,
                np.asarray(np.max(np.abs(rows[:, 0]), initial=0.0)),
                np.asarray(limit * float(np.max(np.abs(rows[:, 0]), initial=0.0))),
                YES,
                count=3,
            )
            for limit in (0.1, 10.0)
        ],
        "ByteRows": [
            lambda: _of("_byte_tables").ByteRows(rows[:, : 2 ** int(np.log2(rows.shape[1]))])
        ],
        "Network": [
            lambda: _of("network_composition").Network(
                (identity, given.target), (0.9 * identity, 1.1 * given.target), rows, rank
            )
        ],
    }
    for name, group in makers.items():
        for make in group:
            with np.errstate(all="ignore"):
                try:
                    yield name, make()
                except (ValueError, np.linalg.LinAlgError):  # numbers beyond float64
                    continue
