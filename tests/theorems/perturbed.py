"""Perturbations for tests, and the laws that every statement about them obeys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from laws import map_is_a_loop, scales, turns
from lowrank_theory.perturbations import Perturbation
from statements import sides
from tolerance import approx, assert_close

TALL, SQUARE = (6, 4), (4, 4)


def at_once(statement: Any, instance: Perturbation) -> tuple[float, float]:
    """The same without the hypotheses, and without compiling a program of its own."""
    with jax.enable_x64(True):
        estimate = statement.estimate(instance)
        bound = statement.formula(instance, estimate)
        return float(statement.loss(instance, estimate)), float(bound)


def drawn(
    shape: tuple[int, int] = TALL,
    *,
    rank: int = 2,
    width: int = 2,
    noise: float = 0.3,
    seed: int = 0,
    symmetric: bool = False,
) -> Perturbation:
    """A matrix of rank `width`, with Gaussian noise."""
    random = np.random.default_rng(seed)
    rows, columns = shape
    matrix = random.standard_normal((rows, width)) @ random.standard_normal((width, columns))
    disturbance = noise * random.standard_normal(shape)
    if symmetric:
        matrix, disturbance = matrix + matrix.T, disturbance + disturbance.T
    return Perturbation(matrix, disturbance, rank)


def diagonal(matrix: list[float], noise: list[float], rank: int = 1) -> Perturbation:
    return Perturbation(np.diag(np.array(matrix, float)), np.diag(np.array(noise, float)), rank)


def mapped(instance: Perturbation, function: Any) -> Perturbation:
    return Perturbation(function(instance.matrix), function(instance.noise), instance.rank)


def obeys_the_laws(
    statement: Any, instance: Perturbation, *, degree: int, symmetric: bool = False
) -> None:
    """Units, rotations, transposition; compiled or not."""
    realised, bound = sides(statement, instance)
    assert 0 < realised <= bound
    scales(
        lambda unit: sides(statement, mapped(instance, lambda part: unit * np.asarray(part))),
        degree,
        condition=10,
    )
    turns(
        lambda matrix, noise: sides(statement, Perturbation(matrix, noise, instance.rank)),
        "aa,aa->" if symmetric else "ab,ab->",
        np.asarray(instance.matrix),
        np.asarray(instance.noise),
        condition=10,
    )
    there = sides(statement, mapped(instance, np.transpose))
    assert_close(there, (realised, bound), condition=10)
    assert at_once(statement, instance) == approx((realised, bound))


def compiles_for_many(statement: Any, instance: Perturbation) -> None:
    """A program that maps over instances says of each what is said of it alone."""
    both = jax.tree.map(lambda part: np.stack([part, part / 2]), instance)
    map_is_a_loop(lambda one: (statement.realised(one), statement.bound(one).value), both)


def freely(statement: Any, seed: int) -> Any:
    """Random free choices of its adversary; call it inside `jax.enable_x64`."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: statement.adversary.start(key=jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape)), shapes)


def adversary_keeps_its_word(statement: Any) -> None:
    """What an adversary makes lies inside the hypotheses, and its estimate is the statement's."""
    with jax.enable_x64(True):
        for seed in range(3):
            instance, known = statement.adversary.play(freely(statement, seed))
            assert all(float(h.margin) >= 0 for h in statement.hypotheses(instance))
            realised, bound = at_once(statement, instance)
            assert 0 < realised <= bound
            if known is not None:
                there = statement.loss(instance, known), statement.formula(instance, known)
                assert there == approx((realised, bound))


def control_is_broken(statement: Any) -> None:
    """The deliberately wrong estimate breaks the bound, which the right one keeps."""
    with jax.enable_x64(True):
        instance = statement.control.draw(key=jax.random.key(0))
        realised, bound = at_once(statement, instance)
        assert realised <= bound * (1 + 1e-9)
        assert float(statement.loss(instance, statement.broken_estimate(instance))) > bound
