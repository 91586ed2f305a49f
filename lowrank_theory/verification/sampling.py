"""Draw trials of a statement: a pure function of a frozen description, block by block."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lowrank_theory._compilation import soon
from lowrank_theory._numerics import float64, rounding_allowance
from lowrank_theory.problems import Parts, Setting
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
    - `key`: trial i has the i-th key folded from it;
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

    def blocks(self) -> "list[Point]":
        """The whole sample in blocks of whole batches."""
        batch = batch_size(by_name(self.statement), self.number)
        size = batch * math.ceil(max(BLOCK, self.number / BLOCKS) / batch)
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
    statement = by_name(point.statement).at(point.failure_probability)
    costly = statement.kind.certainty is Certainty.ASYMPTOTIC
    draw, assess_all = _programs(1 if costly or point.number >= REPAYING else 0)
    batch = batch_size(statement, point.number)
    columns = []
    with float64():
        for start in range(point.start, point.stop, batch):
            indices = jnp.arange(start, start + batch, dtype=jnp.uint32)
            instances = draw(point.setting, point.key, indices)
            measured = assess_all(statement.traced(), instances, point.broken)
            columns.append([np.asarray(column) for column in measured])
    count = point.stop - point.start
    holds, *numbers = (np.concatenate(column)[:count] for column in zip(*columns, strict=True))
    realised, bound, allowance = numbers
    kept = holds & ~np.isinf(bound)
    direction = statement.kind.direction
    return Sample(direction, count, realised[kept], bound[kept], allowance[kept])


def batch_size(statement: AbstractStatement, number: int) -> int:
    """How many trials of a sample of `number` run in one call."""
    batch = LARGE_BATCH if number > MANY else BATCH
    if statement.kind.certainty is Certainty.ASYMPTOTIC:
        return min(batch, number)  # its trials are costly, its sizes compiled apart anyway
    return batch


# Drawing is compiled apart from measuring, so that settings of one shape share the latter. Only
# what is random is drawn: the rest of a problem is made where it is measured, as far as it is used.
# Trials run one after another (`lax.map`): batched decompositions can wait for each other for ever.


def _draw_all(setting: Any, key: PRNGKeyArray, indices: Array) -> Any:
    """Indices of trials -> their instances, or all that is random of them."""
    draw = setting.draw_parts if isinstance(setting, Setting) else setting.draw
    return jax.lax.map(lambda index: draw(key=jax.random.fold_in(key, index)), indices)


def _measure_all(
    statement: AbstractStatement, instances: Any, broken: bool
) -> tuple[Array, Array, Array, Array]:
    """What was drawn -> (hypotheses hold, realised, bound, rounding allowance)."""

    def one(drawn: Any) -> tuple[Array, Array, Array, Array]:
        instance = drawn.problem() if isinstance(drawn, Parts) else drawn
        bound, realised = assess(statement, instance)
        if broken:
            realised = statement.loss(instance, statement.broken_estimate(instance))
        magnitude = statement.magnitude(instance)
        allowance = rounding_allowance(magnitude, *instance.sizes)
        return bound.holds, realised, bound.value, allowance

    return jax.lax.map(one, instances)


@functools.cache
def _programs(level: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """To draw and to measure, at an optimisation level of XLA."""
    draw, assess_all = (
        eqx.filter_jit(function, compiler_options=soon(level))  # pyright: ignore[reportCallIssue]
        for function in (_draw_all, _measure_all)
    )
    return draw, assess_all
