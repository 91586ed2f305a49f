"""What the tests ask of any statement, in numbers."""

from typing import Any

import jax
import numpy as np

from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.problems import Observed, Problem
from lowrank_theory.theorems import AbstractStatement, AbstractTheorem


def by_name(theorem: AbstractTheorem) -> dict[str, Any]:
    """Its statements, by the names of its fields."""
    return {name.split(".")[1]: statement for name, statement in theorem.statements.items()}


def drawn(setting: Any, seed: int = 0) -> Any:
    return setting.draw(key=jax.random.key(seed))


def stated(target: Any, error: Any, rank: int = 1) -> Problem:
    """A layer that is the identity, where the outputs are a target and an error. Vectors stand for
    diagonal matrices.
    """
    target, error = (np.asarray(part, float) for part in (target, error))
    target, error = (np.diag(part) if part.ndim == 1 else part for part in (target, error))
    observed = Observed(activations=np.eye(len(target)), outputs=target + error)
    return Problem.stated(observed, target, rank)


def sides(statement: AbstractStatement, instance: Any, **options: Any) -> tuple[float, float]:
    """Realised quantity and bound."""
    realised = statement.realised(instance, **options)
    return float(realised), float(statement.bound(instance, **options).value)


def rounding_of(statement: AbstractStatement, instance: Any) -> float:
    """How far rounding alone may move the sides of a statement."""
    with jax.enable_x64(True):
        return float(rounding_allowance(statement.magnitude(instance), *instance.sizes))


def in_float64(function: Any, *arguments: Any) -> float:
    with jax.enable_x64(True):
        return float(function(*arguments))
