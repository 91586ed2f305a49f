"""The inequalities of Weyl, Fan and Mirsky against NumPy, by hand, and under their laws."""

import math

import jax
import numpy as np
import pytest

import oracle
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.theorems.singular_values import Mirsky, WeylSum, singular_values
from perturbed import (
    adversary_keeps_its_word,
    at_once,
    compiles_for_many,
    control_is_broken,
    diagonal,
    drawn,
    obeys_the_laws,
)
from tolerance import approx

STATEMENTS = singular_values.statements
every_statement = pytest.mark.parametrize("name", STATEMENTS)


def test_names():
    names = ["weyl", "weyl_sum", "mirsky", "mirsky_nuclear"]
    assert list(STATEMENTS) == [f"singular_values.{name}" for name in names]
    assert [s.exponent for s in STATEMENTS.values() if isinstance(s, Mirsky)] == [math.inf, 2, 1]
    assert all(s.sharp for s in STATEMENTS.values())


@every_statement
def test_laws(name):
    obeys_the_laws(STATEMENTS[name], drawn(rank=1, width=4), degree=1)


@every_statement
def test_adversary_and_control(name):
    adversary_keeps_its_word(STATEMENTS[name])
    control_is_broken(STATEMENTS[name])


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 5.0, math.inf])
def test_mirsky_against_numpy(exponent):
    instance = drawn(width=4)
    differences = oracle.singular_values(instance.perturbed) - oracle.singular_values(
        instance.matrix
    )
    realised = np.linalg.norm(differences, exponent)
    bound = np.linalg.norm(oracle.singular_values(instance.noise), exponent)
    assert at_once(Mirsky(exponent), instance) == approx((realised, bound))


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("index", [1, 2, 3, 9])
def test_weyl_sum_against_numpy(rank, index):
    instance = drawn(rank=rank, width=4)
    signal, noise, both = (
        np.pad(oracle.singular_values(m), (0, 20))
        for m in (instance.matrix, instance.noise, instance.perturbed)
    )
    realised, bound = both[rank + index - 1], signal[rank] + noise[index - 1]
    assert at_once(WeylSum(index), instance) == approx((realised, bound))


def test_noise_on_the_same_vectors_attains_all():
    instance = diagonal([4, 3, 2], [0.5, 0.25, 0.125])
    for statement in (Mirsky(1.0), Mirsky(2.0), Mirsky(3.0), Mirsky(math.inf)):
        realised, bound = at_once(statement, instance)
        assert realised == approx(bound, side=1)
    assert at_once(Mirsky(1.0), instance) == approx((0.875, 0.875))
    flat = diagonal([2, 2, 2], [1, 1, 1])
    assert at_once(WeylSum(2), flat) == approx((3, 3))


def test_values_may_fall_as_well_as_rise():
    assert at_once(Mirsky(math.inf), diagonal([4, 1], [-1, 0])) == approx((1, 1))
    assert at_once(Mirsky(1.0), diagonal([4, 1], [-1, 0.5])) == approx((1.5, 1.5))


def test_rank_bounds_what_noise_can_add():
    instance = drawn(rank=2, width=2, noise=1.0)
    noise, both = oracle.singular_values(instance.noise), oracle.singular_values(instance.perturbed)
    assert at_once(WeylSum(1), instance) == approx((both[2], noise[0]))
    assert at_once(WeylSum(2), instance) == approx((both[3], noise[1]))


def test_without_noise_nothing_moves():
    instance = Perturbation(np.ones((3, 2)), np.zeros((3, 2)), 1)
    assert at_once(Mirsky(2.0), instance) == (0, 0)
    assert float(Mirsky(2.0).bound(instance).require()) == 0


@pytest.mark.parametrize("exponent", [0.5, -1.0, math.nan])
def test_exponent_of_no_norm_is_refused(exponent):
    with pytest.raises(ValueError, match=r"`exponent` must be at least 1 \(infinity is allowed\)"):
        Mirsky(exponent)


@pytest.mark.parametrize("index", [0, True])
def test_index_counts_from_one(index):
    with pytest.raises(ValueError, match="`index` must be an integer >= 1"):
        WeylSum(index)


def test_many_at_once():
    compiles_for_many(Mirsky(), drawn(rank=1, width=4))


def test_only_perturbations_are_instances():
    with pytest.raises(ValueError, match="`instance` must be a `Perturbation`; got ndarray"):
        Mirsky().bound(np.eye(2))


def test_rounding_scales_with_all_that_is_added():
    instance = diagonal([3, 4], [0, 12])
    with jax.enable_x64(True):
        assert float(WeylSum().magnitude(instance)) == approx(17)
        assert float(Mirsky(math.inf).magnitude(instance)) == approx(17)
        assert float(Mirsky(1.0).magnitude(instance)) == approx(2 * 17)
