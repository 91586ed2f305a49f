r"""Several kinds of approximation under one budget: the mixture of all, and each kind alone.

**Judged apart.** A fit that follows its calibration too closely looks better on it than it is, and
the more freedom a kind has, the better it looks. So here layers are fitted to the first half of the
batches, and the loss of a choice is the relative squared error of the outputs on the second half,
for kinds that look at no data too: all are errors of the same outputs. The layers that are returned
are then fitted to all batches.

**Mixture.** The knapsack over all sizes of all kinds (`allocation`). Every choice of one kind is a
choice of the mixture, so its sum of losses is never above that of a kind alone, if the knapsack is
solved exactly; its lower bound holds for all of them.

**The best of all.** What a network loses is not the sum of what its layers lose. So the networks of
the mixture and of each kind alone, fitted to the first half, are run on the second, and the one of
the least error is returned: $\sum\lVert Y - \hat Y\rVert_F^2/\sum\lVert Y\rVert_F^2$ over all
floating-point outputs. For that, what stands for a layer is multiplied out, so that one compiled
program runs all candidates; a table stays a table.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory._engine.choices import Choices, Plan, planned
from lowrank_theory._engine.drawn import computed
from lowrank_theory._engine.fits import FittedLayer, rounded
from lowrank_theory._engine.held_out import float_outputs
from lowrank_theory._engine.replace import replace
from lowrank_theory._engine.weights import Weight
from lowrank_theory.approximations import AbstractApproximation, AbstractMatrix, Affine, Dense
from lowrank_theory.recovery import dense_float64

MIXTURE = "mixture"

Function = Callable[[Any, Any], Any]


def half_of(batches: Iterable[PyTree]) -> int:
    """How many batches are in the first half, the larger one. Raises `ValueError` for one batch."""
    count = sum(1 for _ in batches)
    if count < 2:
        raise ValueError(
            "`batches` holds one batch. Several methods are fitted to one half of the batches and "
            "compared on the other: divide it into two or more."
        )
    return (count + 1) // 2


def plans_of(
    choices: Mapping[str, Choices], kinds: Sequence[str], share: float
) -> tuple[dict[str, Plan], dict[str, str]]:
    """The plan of the mixture and of each kind alone, and why others cannot meet the budget.

    A plan of one kind that loses less than what was found for the mixture takes its place.
    """
    plans: dict[str, Plan] = {}
    unmet: dict[str, str] = {}
    every = {kind: _of_kind(choices, number) for number, kind in enumerate(kinds)}
    for name, those in {MIXTURE: choices, **every}.items():
        try:
            plans[name] = planned(those, share)
        except ValueError as error:
            unmet[name] = str(error)
    if MIXTURE in plans:
        bound = plans[MIXTURE].lower_bound
        best = min(plans.values(), key=lambda plan: plan.loss)
        plans[MIXTURE] = dataclasses.replace(best, lower_bound=bound)
    return plans, unmet


def _of_kind(choices: Mapping[str, Choices], number: int) -> dict[str, Choices]:
    return {path: each.of_kind(number) for path, each in choices.items()}


def kind_of(plan: Plan, kinds: Sequence[str]) -> str:
    """The one kind that a plan takes, or that it is a mixture."""
    taken = {number for number, _ in plan.taken.values()}
    return kinds[taken.pop()] if len(taken) == 1 else MIXTURE


@dataclasses.dataclass(frozen=True)
class Squares:
    """Squared errors of a network's outputs, batch by batch, and their squared norms."""

    errors: Float[np.ndarray, " batches"]
    norms: Float[np.ndarray, " batches"]

    @property
    def relative(self) -> float:
        """Of all batches together; infinite where an output is not finite."""
        errors, norms = float(np.sum(self.errors)), float(np.sum(self.norms))
        if norms > 0 and math.isfinite(errors):
            return errors / norms
        return 0.0 if errors == 0 else math.inf


class Candidates:
    """Networks in which these weights are replaced, each compiled as one of its structure."""

    def __init__(
        self, function: Function, parameters: PyTree, weights: Mapping[str, Weight]
    ) -> None:
        self.function, self.parameters, self.weights = function, parameters, weights
        self._original = jax.jit(function)
        self._runs: list[tuple[Any, Function, Function]] = []

    def network(self, made: Mapping[str, FittedLayer]) -> tuple[Function, PyTree]:
        """The function and the parameters in which these layers stand, all others as they are: the
        same function for all that are built alike.
        """
        given: dict[str, AbstractApproximation] = {}
        for path, weight in self.weights.items():
            found = _multiplied_out(weight, made.get(path))
            given |= dict.fromkeys((path, *weight.tied), found)
        if not given:
            return self.function, self.parameters
        function, parameters = replace(self.function, self.parameters, given)
        return self._known(function, parameters)[0], parameters

    def squares(
        self,
        networks: Mapping[str, tuple[Function, PyTree]],
        batches: Iterable[PyTree],
        part: slice = slice(None),
    ) -> dict[str, Squares]:
        """Of each of these `network`s, on a part of the batches."""
        norms: list[float] = []
        errors: dict[str, list[float]] = {name: [] for name in networks}
        for batch in map(computed, itertools.islice(batches, part.start, part.stop)):
            outputs = float_outputs(self._original(self.parameters, batch))
            norms.append(sum(float(np.vdot(each, each)) for each in outputs))
            for name, (function, parameters) in networks.items():
                run = self._known(function, parameters)[1]
                others = float_outputs(run(parameters, batch))
                pairs = zip(outputs, others, strict=True)
                with np.errstate(all="ignore"):
                    square = sum(float(np.sum((y - other) ** 2)) for y, other in pairs)
                errors[name].append(square if math.isfinite(square) else math.inf)
        return {name: Squares(np.array(each), np.array(norms)) for name, each in errors.items()}

    def _known(self, function: Function, parameters: PyTree) -> tuple[Function, Function]:
        structure = jax.tree.structure(parameters)
        for known, *both in self._runs:
            if known == structure:
                return both[0], both[1]
        self._runs.append((structure, function, jax.jit(function)))
        return self._runs[-1][1:]


def _multiplied_out(weight: Weight, made: FittedLayer | None) -> Affine:
    """What stands for a layer, as a matrix and a shift if it can be."""
    dtype = weight.dtype
    if made is None:
        matrix = weight.view.matrix(np.asarray(weight.leaf)).astype(dtype)
        return Affine(Dense(matrix), np.zeros((*matrix.shape[:-2], matrix.shape[-1]), dtype))
    found, shift = made.approximation, None
    if isinstance(found, Affine):
        found, shift = found.approximation, np.asarray(found.shift)
    if isinstance(found, AbstractMatrix):
        found = Dense(rounded(dense_float64(found), dtype))
    if shift is None:
        shift = np.zeros((*found.shape[:-2], found.shape[-1]), found.dtype)
    return Affine(found, shift)
