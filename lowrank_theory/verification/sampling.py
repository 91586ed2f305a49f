"""Draw trials of a statement: a pure function of a frozen description, block by block."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lowrank_theory._compilation import soon
from lowrank_theory._numerics import float64, rounding_allowance
from lowrank_theory.problems import AbstractParts
from lowrank_theory.theorems import (
    STATEMENTS,
    AbstractStatement,
    AbstractTheorem,
    Certainty,
    Direction,
    assess,
)

BATCH = 32
MANY, LARGE_BATCH = 256, 128  # more than so many come in larger batches
REPAYING = 1_000  # from here on, optimise what is compiled
COMPILED = 2_000  # from here on, compile what draws
BLOCK, BLOCKS = 512, 16  # at least so many trials, or at most so many blocks


@dataclasses.dataclass(frozen=True)
class Sample:
    """Trials of one statement on one setting, as NumPy arrays of equal length.

    Only applicable trials, those whose hypotheses hold and whose bound is not infinite, are kept;
    `trials` counts all. `allowance` is how far rounding may move the realised quantity, and is
    granted in favour of the statement. NaN satisfies no statement.
    """

    direction: Direction
    trials: int
    realised: np.ndarray
    bound: np.ndarray
    allowance: np.ndarray

    @property
    def applicable(self) -> int:
        """How many trials the statement speaks of."""
        return self.realised.size

    @property
    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The side that should be smaller, and the other."""
        if self.direction is Direction.LOWER:
            return self.bound, self.realised
        return self.realised, self.bound

    @property
    def refuting_factor(self) -> np.ndarray:
        """The factor below which the trial refutes the bound times it, or a lower bound over it."""
        small, large = self._sides
        return _quotient(np.maximum(small - self.allowance, 0), large)

    @property
    def ratio(self) -> np.ndarray:
        """Realised / bound, inverted for lower bounds: a violation has a ratio above one.

        Exactly one where an equality holds up to rounding; for inequalities, `refuting_factor`.
        """
        if self.direction is not Direction.EQUALITY:
            return self.refuting_factor
        difference = self.realised - self.bound
        excess = np.maximum(np.abs(difference) - self.allowance, 0)
        relative = _quotient(excess, np.abs(self.bound))
        return 1 + np.where(difference < 0, -relative, relative)

    @property
    def violated(self) -> np.ndarray:
        """Whether the trial is on the wrong side of its bound, beyond rounding."""
        small, large = self._sides
        gap = small - large
        return ~((np.abs(gap) if self.direction is Direction.EQUALITY else gap) <= self.allowance)


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`; 0 / 0 is zero, and what is not a number is infinite."""
    zero = (numerator == 0) & (denominator == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(zero, 0.0, numerator / denominator)
    return np.where(np.isnan(quotient), np.inf, quotient)


def join(samples: Sequence[Sample]) -> Sample:
    """The blocks of one sample, in their order, as one."""
    columns = ("realised", "bound", "allowance")
    joined = (np.concatenate([getattr(block, name) for block in samples]) for name in columns)
    return Sample(samples[0].direction, sum(block.trials for block in samples), *joined)


def name_of(statement: AbstractStatement) -> str:
    """The full name of a statement, such as `planted_rank.gaussian`; the name of its class for one
    that is of no theorem of its module.
    """
    found = reference(statement)
    if isinstance(found, str):
        return found
    theorems = theorems_of(sys.modules[type(statement).__module__])
    names = (
        name
        for theorem in theorems.values()
        for name, known in theorem.statements.items()
        if type(known) is type(statement) and known == statement
    )
    return next(names, type(statement).__name__)


def theorems_of(module: ModuleType) -> dict[str, AbstractTheorem]:
    """The theorems that a module states, by the names that they have in it."""
    return {
        name: each
        for name, each in vars(module).items()
        if isinstance(each, AbstractTheorem) and type(each).__module__ == module.__name__
    }


def reference(statement: AbstractStatement) -> str | AbstractStatement:
    """The full name of a statement of `STATEMENTS`, another statement itself."""
    names = (name for name, known in STATEMENTS.items() if known is statement)
    return next(names, statement)


def by_name(statement: str | AbstractStatement) -> AbstractStatement:
    """The statement that `reference` stands for."""
    return STATEMENTS[statement] if isinstance(statement, str) else statement


@dataclasses.dataclass(frozen=True)
class Point:
    """Trials `start` to `stop` of the `number` of one sample: all that their result depends on.

    - `statement`: by full name where it is one of `STATEMENTS`, so that little is sent to a worker;
    - `label`: names the sample among those of its statement;
    - `key`: trial i has the i-th key folded from it, or the generator seeded by it and i;
    - `broken`: measures the statement's broken estimate.
    """

    statement: str | AbstractStatement
    label: str
    setting: Any
    number: int
    key: PRNGKeyArray
    failure_probability: float
    broken: bool
    start: int
    stop: int

    @property
    def name(self) -> tuple[str, int]:
        """Which point of its statement it is."""
        return self.label, self.start

    @property
    def batch(self) -> int:
        """How many trials run in one call."""
        return batch_size(by_name(self.statement), self.number)

    @property
    def is_costly(self) -> bool:
        """Whether it is of a limit, of large instances."""
        return by_name(self.statement).kind.certainty is Certainty.ASYMPTOTIC

    @property
    def level(self) -> int:
        """The optimisation level of its programs."""
        return 1 if self.is_costly or self.number >= REPAYING else 0

    @property
    def is_drawn_on_host(self) -> bool:
        """Whether it is drawn with NumPy, with nothing to compile."""
        return self.number < COMPILED and _is_ours(self.setting)

    def draws_as(self, other: "Point") -> bool:
        """Whether the instances of one are the first of the other, in the same batches: their
        statements may differ.
        """

        def drawn(point: Point) -> tuple[Any, ...]:
            key = jax.random.key_data(point.key).tolist()
            return key, point.broken, point.batch, point.level, point.is_drawn_on_host

        alike = self.name == other.name and drawn(self) == drawn(other)
        return alike and bool(eqx.tree_equal(self.setting, other.setting))

    def blocks(self) -> "list[Point]":
        """The whole sample in blocks of whole batches."""
        size = self.batch * math.ceil(max(BLOCK, self.number / BLOCKS) / self.batch)
        starts = range(0, self.number, size)
        return [
            dataclasses.replace(self, start=start, stop=min(start + size, self.number))
            for start in starts
        ]


def request(
    statement: AbstractStatement,
    setting: Any,
    number: int,
    key: PRNGKeyArray,
    failure_probability: float | None = None,
    broken: bool = False,
    label: str = "",
) -> Point:
    """A whole sample, described; at the statement's own δ if no other is given."""
    named = reference(statement)
    probability = float(statement.at(failure_probability).failure_probability)
    return Point(named, label, setting, number, key, probability, broken, 0, number)


def measure(point: Point) -> Sample:
    """Draw the trials of a point and measure them, in batches of one size: compiled once.

    Which program runs depends on the `number` of the whole sample, never on the block.
    """
    (sample,) = _measure_alike([point], _asked([point]))
    return sample


class Together:
    """Measures points of several statements: those that draw alike, on the same instances.

    Statements that are asked of instances of one structure are one program, in which a
    decomposition that they share is compiled and computed once. It is run on all instances of the
    structure, so that there are few programs, and what was not asked for is left; but for limits,
    where to measure is dearer than to compile. The company of a statement moves its numbers by
    rounding at most.
    """

    def __init__(self) -> None:
        self._statements: dict[Any, dict[Any, AbstractStatement]] = {}

    def measure(self, points: Sequence[Point]) -> Iterator[tuple[Point, Sample]]:
        """Each point with its sample, as they are measured."""
        groups: list[list[Point]] = []
        for point in points:
            for group in groups:
                if point.draws_as(group[0]):
                    group.append(point)
                    break
            else:
                groups.append([point])
        measured = [self._with(group) for group in groups]
        for group, statements in zip(groups, measured, strict=True):
            yield from zip(group, _measure_alike(group, statements), strict=True)

    def _with(self, group: Sequence[Point]) -> dict[Any, AbstractStatement]:
        """The statements that are measured on the instances of a group, its own among them; others
        may join.
        """
        asked = _asked(group)
        if group[0].is_costly:
            return asked
        together = self._statements.setdefault(_structure(group[0]), {})
        together |= asked
        return together


def _asking(point: Point) -> Any:
    """Which statement it asks, at which probability."""
    known = isinstance(point.statement, str)
    return point.statement if known else id(point.statement), point.failure_probability


def _asked(group: Sequence[Point]) -> dict[Any, AbstractStatement]:
    """The statements of points."""
    return {_asking(p): by_name(p.statement).at(p.failure_probability) for p in group}


def _structure(point: Point) -> Any:
    """What a program to measure its instances is compiled for."""
    if point.is_drawn_on_host:
        (instances,) = jax.tree.map(np.asarray, _on_host(point, [point.start]))
    else:
        with float64():
            instances = eqx.filter_eval_shape(_batch, point, point.start)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(instances)]
    return jax.tree.structure(instances), tuple(shapes), point.batch, point.level


def _batch(point: Point, start: int) -> Any:
    """The instances of a batch of its trials, or all that is random of them."""
    trials = range(start, start + point.batch)
    if point.is_drawn_on_host:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *_on_host(point, trials))
    draw, *_ = _programs(point.level)
    return draw(point.setting, point.key, jnp.asarray(trials, jnp.uint32))


def _is_ours(part: Any) -> bool:
    """Whether a setting, or a part of one, and all its parts are of this package, whose laws can be
    drawn with NumPy.
    """
    if isinstance(part, eqx.Module):
        parts = [getattr(part, field.name) for field in dataclasses.fields(part)]
        return type(part).__module__.startswith("lowrank_theory.") and all(map(_is_ours, parts))
    if isinstance(part, tuple):
        return all(map(_is_ours, part))
    return part is None or isinstance(part, bool | int | float | np.ndarray | np.generic | Array)


def _on_host(point: Point, trials: Sequence[int]) -> list[Any]:
    """Some trials: their instances, or all that is random of them."""
    words = np.asarray(jax.random.key_data(point.key)).ravel().tolist()
    generators = [np.random.default_rng([*words, trial]) for trial in trials]
    draw = getattr(point.setting, "draw_parts", point.setting.draw)
    with np.errstate(all="ignore"):  # what leaves float64 is judged where it is measured
        return [draw(key=generator) for generator in generators]


def _measure_alike(
    group: Sequence[Point], together: Mapping[Any, AbstractStatement]
) -> list[Sample]:
    """The samples of points that draw alike, in a program that measures others as well."""
    first = group[0]
    _, assess_all, break_all = _programs(first.level)
    asked = [list(together).index(_asking(point)) for point in group]
    stop = max(point.stop for point in group)
    batches = []
    with float64():
        statements = [statement.traced() for statement in together.values()]
        for start in range(first.start, stop, first.batch):
            instances = _batch(first, start)
            measured = assess_all(statements, instances)
            found = [measured[number] for number in asked]
            if first.broken:
                broken = break_all([statements[number] for number in asked], instances)
                found = [(*rest, loss) for (*rest, _), loss in zip(found, broken, strict=True)]
            batches.append([[np.asarray(column) for column in columns] for columns in found])
    return [_sample(point, columns) for point, *columns in zip(group, *batches, strict=True)]


def _sample(point: Point, batches: Sequence[Sequence[np.ndarray]]) -> Sample:
    """The trials of a point, the first of those that were measured, as far as they are kept."""
    count = point.stop - point.start
    columns = (np.concatenate(column)[:count] for column in zip(*batches, strict=True))
    holds, bound, allowance, realised = columns
    kept = holds & ~np.isinf(bound)
    direction = by_name(point.statement).kind.direction
    return Sample(direction, count, realised[kept], bound[kept], allowance[kept])


def batch_size(statement: AbstractStatement, number: int) -> int:
    """How many trials of a sample of `number` run in one call."""
    batch = LARGE_BATCH if number > MANY else BATCH
    if statement.kind.certainty is Certainty.ASYMPTOTIC:
        return min(batch, number)  # its trials are costly, its sizes compiled apart anyway
    return batch


# Drawing with JAX is compiled apart from measuring: settings of one shape share the latter. Only
# what is random is drawn: the rest of a problem is made where it is measured, as far as it is used.
# Trials run one after another (`lax.map`): batched decompositions can wait for each other for ever.


def _draw_all(setting: Any, key: PRNGKeyArray, indices: Array) -> Any:
    """Indices of trials -> their instances."""
    return jax.lax.map(lambda index: setting.draw(key=jax.random.fold_in(key, index)), indices)


def _measure_all(
    statements: Sequence[AbstractStatement], instances: Any
) -> list[tuple[Array, Array, Array, Array]]:
    """What was drawn -> (hypotheses hold, bound, rounding allowance, realised) of each."""

    def one(drawn: Any) -> list[tuple[Array, Array, Array, Array]]:
        instance, columns = _instance(drawn), []
        for statement in statements:
            bound, realised = assess(statement, instance)
            allowance = rounding_allowance(statement.magnitude(instance), *instance.sizes)
            columns.append((bound.holds, bound.value, allowance, realised))
        return columns

    return jax.lax.map(one, instances)


def _break_all(statements: Sequence[AbstractStatement], instances: Any) -> list[Array]:
    """What was drawn -> what is realised by the broken estimate of each statement."""

    def one(drawn: Any) -> list[Array]:
        instance = _instance(drawn)
        return [each.loss(instance, each.broken_estimate(instance)) for each in statements]

    return jax.lax.map(one, instances)


def _instance(drawn: Any) -> Any:
    return drawn.instance() if isinstance(drawn, AbstractParts) else drawn


@functools.cache
def _programs(level: int) -> tuple[Callable[..., Any], ...]:
    """To draw, to measure and to measure broken estimates, at an optimisation level of XLA."""
    return tuple(
        eqx.filter_jit(function, compiler_options=soon(level))  # pyright: ignore[reportCallIssue]
        for function in (_draw_all, _measure_all, _break_all)
    )
