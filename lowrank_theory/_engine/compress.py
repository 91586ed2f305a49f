r"""A network compressed: one target for all layers, sizes that meet it, matrices that run.

Each selected weight $W$, of which `survey` finds where it multiplies, is a layer $X \mapsto XW$; a
leaf that holds several matrices (the slices of a loop, the groups of a convolution) is one layer
with one size for all. A *size* is a rank, a number of bits, a share of entries: what the method, a
ladder, comes in. The loss is the squared error of the outputs over their squared norm, summed over
the rows of the batches and over the matrices,

$$\ell = \frac{\sum\lVert XW - (\tilde XZ + \mathbf 1s^\top)\rVert_F^2}{\sum\lVert
XW\rVert_F^2}:$$

the outputs with their mean, but before a bias is added. The shift $s$ keeps the mean of the outputs
what it was; where activations are complex, it is zero. A method that does not look at the data
shifts nothing, and where none looks, the loss is $\lVert W - Z\rVert_F^2/\lVert W\rVert_F^2$. $W$
is the weight as it is stored, and $Z$ and $s$ are as they are returned: rounded to its dtype (where
they are factors, balanced before) before the loss is computed, in float64.

In a first phase the losses at all sizes are found and one is chosen for each layer; a budget is
spent so that the sum of the losses is least (`allocation`), and among several methods as
`competition` says. On its own, a layer is fitted to what it sees in the original network, $\tilde X
= X$. In sequence, layer after layer in the order of execution, it is fitted from what it sees in
the network compressed so far to what it gave in the original one
(paper_notes/network_composition.md). The matrices of a stack are fitted together: what they see is
compressed as far as the layers before the stack are.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import PyTree

from lowrank_theory._engine.choices import Origin, Won, stays
from lowrank_theory._engine.competition import MIXTURE, Candidates, half_of, kind_of, plans_of
from lowrank_theory._engine.compressed import Candidate, Compressed, layers_of, nested_of
from lowrank_theory._engine.fits import FittedLayer, errors_are_of_outputs, kinds_of, needs_of
from lowrank_theory._engine.observation import Observation, Survey
from lowrank_theory._engine.observer import Observer
from lowrank_theory._engine.passes import blocks_of
from lowrank_theory._engine.phases import Approximations, Phases
from lowrank_theory._engine.replace import replace
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget
from lowrank_theory._engine.targets import Bytes as Bytes
from lowrank_theory._engine.targets import IdealBits as IdealBits
from lowrank_theory._engine.targets import LayerError as LayerError
from lowrank_theory._engine.targets import MultiplyAdds as MultiplyAdds
from lowrank_theory._engine.targets import Parameters as Parameters
from lowrank_theory._engine.targets import RankRule as RankRule
from lowrank_theory._engine.weights import Weight, tied_leaves, weights_of
from lowrank_theory._numerics import check_count
from lowrank_theory._progress import Progress
from lowrank_theory.calibration import AbstractCalibration, Calibration
from lowrank_theory.recovery import AbstractLadder, AbstractNestedMethod, ActivationWeighted, Need

DATA_DRIVEN = ActivationWeighted()
Methods = AbstractLadder | Sequence[AbstractLadder]


def compress(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    target: AbstractTarget,
    *,
    method: Methods = DATA_DRIVEN,
    sequential: bool = False,
    every_size: bool = False,
    select: Callable[[str], bool] | None = None,
    calibration: type[AbstractCalibration] = Calibration,
    passes: int | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compress the weights of `function(parameters, batch)`.

    ```python
    compressed = compress(function, parameters, batches, Bytes(0.5))
    outputs = jax.jit(compressed.function)(compressed.parameters, batch)
    ```

    The target is a budget (`Parameters`, `Bytes`, `IdealBits`, `MultiplyAdds`), `LayerError` or
    `RankRule`. What is a weight and what it sees is found as by `observe`; `select`, a predicate of
    the path, says which weights may be compressed, and their cost is what a share is a share of.
    The method is a ladder such as `ActivationWeighted()` or, without a look at the data,
    `TruncatedSVD()` or `RoundToNearest()`. `batches` is gone through again and again: a list, or
    anything else that begins anew.

    Of several methods each layer gets the one that serves the target best, and all losses are
    errors of the outputs. Under a budget they are measured apart from the fits: layers are fitted
    to the first half of the batches (the larger one, of an odd number), and judged on the second.
    Returned is the mixture or, where its outputs are nearer on the second half, the network of one
    method alone; fitted anew, to all batches. `Compressed.candidates` holds what each lost, `gap`
    how far the plan is from a bound for all plans, and each layer by how much its method won.

    Where nothing would be saved a layer stays dense, and says so; so it does where the numbers are
    not finite in the dtype of the weight, and where that is too coarse for a `LayerError`. All
    selected leaves that are no weights are listed with the reason. One array at several leaves is
    one weight: it is replaced at all of them, by the same arrays, or at none.

    In memory are the statistics of a block of layers, as many as half of what is free holds, with
    one pass over the data for each block (`calibration` says of which kind: a
    `TriangularCalibration` resolves smaller errors, and takes about twice as long); and all layers
    at all sizes that save anything, until those are chosen. With `sequential`, a second phase takes
    one pass for each input that weights see, or at most `passes`: then several layers at once, with
    those that stay dense, are fitted to what they see in the network as it was before them; all of
    them as if without a sequence, where one pass is for all that are replaced. That can cost most
    of what the sequence gains: a ResNet-32 with one pass for each input kept 88.4 % accuracy, and
    81.7 % with 8. A warning says where it is so. `progress(path, done, total)` is called after each
    layer of a phase.

    Factors of nested ranks hold those of all smaller ones, so a network compressed to a budget by
    `ActivationWeighted` or `TruncatedSVD` is every smaller one, too: `Compressed.at`. What stays
    dense in it stays dense in those; with `every_size`, which is for such networks, nothing does of
    which a rank saves anything, and the largest may lose more for it.

    Raises `ValueError` for what `observe` refuses, for batches that can be gone through only once,
    a budget that cannot be met, naming the weights that cannot be replaced, or that counts what a
    method cannot save, the same method twice, a single batch for several under a budget, and
    statistics that do not fit into memory.
    """
    methods = _check(target, method, sequential, passes, every_size=every_size)
    budget = target if len(methods) > 1 and isinstance(target, AbstractBudget) else None
    apart = budget is not None
    given = function, parameters, batches, target, methods
    ready = prepared(*given, select, calibration, progress, phases=1 + (sequential or apart))
    survey, weights, free, needs = ready.survey, ready.weights, ready.free, needs_of(methods)
    blocks, phases, remarks = ready.blocks(halves=apart), ready.phases, ready.phases.remarks
    later: list[list[str]] = []
    if sequential:
        later = blocks_of(survey, free, needs=needs, paired=True, passes=passes or len(free))
    _warn_of_few(passes, len({survey[path].group for path in free}))
    won: Mapping[str, Won] = {}
    made: Mapping[str, FittedLayer] = {}
    if budget is not None:
        taken, known, won = _best(phases, blocks, budget.share, ready.candidates, batches)
    else:
        taken, made, known = phases.chosen(blocks, make=not sequential, every_size=every_size)
    if sequential or apart:
        made = phases.made(later or blocks, taken, sequential=sequential)
    network = function, parameters
    if made:
        network = replace(function, parameters, phases.approximations(made))
    provenance = {
        "target": str(target),
        "method": ", ".join(map(str, methods)),
        "sequential": sequential,
        "every_size": every_size,
        "passes": passes,
        "squared_errors": sum(each.relative_error**2 for each in made.values()),
        "not_followed": {path: "; ".join(why) for path, why in survey.not_followed.items()},
        **known,
    }
    layers = layers_of(weights, made, remarks, won)
    nested = None if len(methods) > 1 else nested_of(target, weights, made)
    return Compressed(*network, layers, provenance, nested)


class Prepared(NamedTuple):
    """A network of which weights are to be replaced, those `free` to be."""

    survey: Survey
    weights: Mapping[str, Weight]
    free: list[str]
    phases: Phases
    candidates: Candidates

    def blocks(self, *, halves: bool) -> list[list[str]]:
        """The layers that are observed in one pass, where any are."""
        methods = self.phases.methods
        if not errors_are_of_outputs(methods):
            return [self.free]
        return blocks_of(self.survey, self.free, needs=needs_of(methods), halves=halves)


def prepared(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    target: AbstractTarget,
    methods: tuple[AbstractLadder, ...],
    select: Callable[[str], bool] | None,
    calibration: type[AbstractCalibration],
    progress: Progress | None,
    *,
    phases: int,
) -> Prepared:
    """The network surveyed, before anything is observed, for so many phases."""
    tied = tied_leaves(parameters, select or (lambda _: True))
    observer = Observer(function, parameters, select, tied)
    survey = observer.survey(_first(batches))
    weights = weights_of(parameters, survey, tied)
    remarks = {path: f"it cannot be replaced: {why[0]}" for path, why in survey.remarks.items()}
    free = [path for path in weights if path not in remarks]

    def observe(paths: Collection[str], approximations: Approximations, part: slice) -> Observation:
        return observer.observe(
            batches,
            only=paths,
            compressed=replace(function, parameters, approximations) if approximations else None,
            kind=calibration,
            rows=Need.ROWS in needs_of(methods),
            part=part,
        )

    steps = itertools.count(1)

    def step(path: str) -> None:
        if progress is not None:
            progress(path, next(steps), phases * len(free))

    candidates = Candidates(function, parameters, {path: weights[path] for path in free})
    work = Phases(target, methods, weights, observe, remarks, step)
    return Prepared(survey, weights, free, work, candidates)


def _best(
    phases: Phases,
    blocks: Sequence[Sequence[str]],
    share: float,
    candidates: Candidates,
    batches: Iterable[PyTree],
) -> tuple[Mapping[str, Origin], dict[str, Any], dict[str, Won]]:
    """The sizes of the mixture or of one method, whichever network loses less on the second half of
    the batches; what is known of all; and by how much each layer was won.
    """
    half, kinds = half_of(batches), kinds_of(phases.methods)
    choices = phases.choices(blocks, keep=True, half=half)
    plans, unmet = plans_of(choices, kinds, share)
    if MIXTURE in unmet:
        raise stays(ValueError(unmet[MIXTURE]), phases.remarks)
    fits = {path: each.fits for path, each in choices.items()}
    networks = {
        name: candidates.network(phases.at(fits, plan.taken)) for name, plan in plans.items()
    }
    squares = candidates.squares(networks, batches, slice(half, None))
    best = min(plans, key=lambda name: (squares[name].relative, plans[name].loss))
    plan = plans[best]
    phases.leave_dense(plan)
    met = {n: Candidate(p.loss, squares[n].relative) for n, p in plans.items()}
    lacking = {name: Candidate(None, None, why) for name, why in unmet.items()}
    known = {
        "planned": plan.loss,
        "lower_bound": plans[MIXTURE].lower_bound,
        "returned": kind_of(plan, kinds),
        "candidates": {n: dataclasses.asdict(each) for n, each in {**met, **lacking}.items()},
    }
    won = {path: Won.of(choices[path], origin, kinds) for path, origin in plan.taken.items()}
    return plan.taken, known, won


def _check(
    target: Any, method: Any, sequential: bool, passes: int | None, *, every_size: bool
) -> tuple[AbstractLadder, ...]:
    if not isinstance(target, AbstractTarget):
        raise ValueError(
            "`target` must be a budget such as `Parameters(0.5)`, or `LayerError` or `RankRule`; "
            f"got {target!r}."
        )
    methods = checked_methods(method)
    nested = isinstance(methods[0], AbstractNestedMethod)
    if isinstance(target, RankRule) and not (nested and len(methods) == 1):
        raise ValueError(
            "`RankRule` finds ranks: give it one method whose ranks are nested, "
            f"`ActivationWeighted()` or `TruncatedSVD()`; got {method!r}."
        )
    if every_size and not (nested and len(methods) == 1 and isinstance(target, AbstractBudget)):
        raise ValueError(
            "`every_size` is for a budget, such as `Bytes(0.5)`, and one method whose ranks are "
            f"nested, `ActivationWeighted()` or `TruncatedSVD()`; got {target!r} and {method!r}."
        )
    if sequential and not needs_of(methods):
        names = " and ".join(f"`{type(each).__name__}`" for each in methods)
        verb = "does" if len(methods) == 1 else "do"
        raise ValueError(f"{names} {verb} not look at the data: leave `sequential` out.")
    if passes is not None:
        passes = check_count("passes", passes, 1)
        if not sequential:
            raise ValueError("`passes` is for `sequential=True`; otherwise memory decides.")
    return methods


def checked_methods(method: Any) -> tuple[AbstractLadder, ...]:
    """One ladder or several, or a `ValueError`."""
    methods = tuple(method) if isinstance(method, list | tuple) else (method,)
    if not methods or not all(isinstance(each, AbstractLadder) for each in methods):
        raise ValueError(
            "`method` must be a ladder, such as `ActivationWeighted()`, `TruncatedSVD()` or "
            f"`RoundToNearest()`, or a list of some; got {method!r}."
        )
    twice = [str(each) for each in methods if methods.count(each) > 1]
    if twice:
        raise ValueError(f"`method` holds {twice[0]} more than once.")
    return methods


def _warn_of_few(passes: int | None, inputs: int) -> None:
    if passes is not None and passes < inputs:
        warnings.warn(
            f"`passes` is {passes}, and the weights see {inputs} inputs: those fitted in one pass "
            "do not see each other compressed, which can cost most of what a sequence gains. Leave "
            f"`passes` out, or allow {inputs}.",
            stacklevel=3,
        )


def _first(batches: Iterable[PyTree]) -> PyTree:
    try:
        begun = iter(batches)
    except TypeError:
        begun = batches
    if begun is batches:
        raise ValueError(
            "`batches` must be a list, or anything else that can be gone through more than once; "
            f"got {type(batches).__name__}."
        )
    for batch in begun:
        return batch
    raise ValueError("`batches` is empty: give at least one batch.")
