"""What a low-rank correction captures of a white residual: limits, exact cases, an oracle."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from laws import scales
from lowrank_theory.generators import noise
from lowrank_theory.theorems.white_residual import (
    Residual,
    ResidualSetting,
    counted_share,
    edge_share,
    share_limit,
    white_residual,
)
from oracle import upper_edge
from statements import by_name, drawn, sides
from tolerance import approx

STATEMENTS = by_name(white_residual)
SETTING = ResidualSetting(rows=7, columns=4, rank=2)
YES, NO = np.asarray(True), np.asarray(False)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_statement_against_its_formula_in_numpy(transposed):
    matrix = np.random.default_rng(0).standard_normal((7, 4))
    s = np.linalg.svd(matrix, compute_uv=False)
    instance = Residual(matrix.T if transposed else matrix, 2, YES, YES)
    edge = upper_edge(7, 4, 0.05)
    expected = {
        "any_residual": 2 * s[0] ** 2 / np.sum(s**2),
        "expected": ((math.sqrt(7) + 2) ** 2 + (math.sqrt(7) + math.sqrt(3)) ** 2 - 1) / 28,
        "gaussian": min(2 * edge**2, (math.sqrt(28) + math.sqrt(2 * math.log(20))) ** 2) / 27.5,
        "edge": 2 * (7**-0.5 + 0.5) ** 2,
        "limit": share_limit(7, 4, 2),
    }
    share = (s[0] ** 2 + s[1] ** 2) / np.sum(s**2)
    assert set(expected) == set(STATEMENTS)
    for name, value in expected.items():
        assert sides(STATEMENTS[name], instance) == approx((share, value)), name
    assert expected["expected"] <= expected["edge"]


@pytest.mark.parametrize("name", ["any_residual", "gaussian"])
def test_shares_have_no_unit(name):
    instance = drawn(SETTING)

    def at(unit):
        scaled = dataclasses.replace(instance, matrix=unit * np.asarray(instance.matrix))
        return sides(STATEMENTS[name], scaled)

    scales(at, 0)


def test_any_residual_is_attained_by_equal_singular_values():
    flat = Residual(np.diag([2.0, 2.0, 0.0]), 2, NO, NO)
    assert sides(white_residual.any_residual, flat) == approx((1, 1))
    steep = Residual(np.diag([2.0, 1.0, 1.0]), 2, NO, NO)
    assert sides(white_residual.any_residual, steep) == approx((5 / 6, 8 / 6))
    nothing = Residual(np.zeros((3, 3)), 2, NO, NO)
    assert sides(white_residual.any_residual, nothing) == (0, 0)


def test_the_adversary_plays_residuals():
    adversary = white_residual.any_residual.adversary
    assert adversary is not None
    with jax.enable_x64(True):
        free = adversary.start(key=jax.random.key(0))
        assert free.shape == (4, 3)
        instance, estimate = adversary.play(jnp.eye(4, 3) * jnp.array([1.0, 1.0, 0.01]))
        assert estimate is None
        assert instance.rank == 2
    realised, bound = sides(white_residual.any_residual, instance)
    assert 0.999 * bound <= realised <= bound


def tail_of_marchenko_pastur(ratio: float, angle: float) -> tuple[float, float]:
    """Mass and energy of the law above an angle, by quadrature of its density."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    cut = 1 + ratio + 2 * math.sqrt(ratio) * math.cos(angle)

    def density(x: float) -> float:
        return math.sqrt(max((high - x) * (x - low), 0)) / (2 * math.pi * ratio * x)

    mass = integrate.quad(density, cut, high, limit=200)[0]
    energy = integrate.quad(lambda x: x * density(x), cut, high, limit=200)[0]
    return mass, energy


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("angle", [0.2, 1.0, 2.0, 3.0])
def test_limit_against_quadrature(ratio, angle):
    mass, energy = tail_of_marchenko_pastur(ratio, angle)
    assert counted_share(angle, ratio) == approx(mass, condition=100)
    assert (angle - math.sin(angle) * math.cos(angle)) / math.pi == approx(energy, condition=100)


def test_share_limit():
    # The angle of half the mass of a square matrix, found by the quadrature above.
    share = share_limit(1000, 1000, 250)
    angle = next(a for a in np.linspace(0, math.pi, 4001) if counted_share(a, 1.0) >= 0.25)
    assert share == pytest.approx((angle - math.sin(angle) * math.cos(angle)) / math.pi, abs=1e-3)
    assert share_limit(30, 50, 7) == share_limit(50, 30, 7)
    assert share_limit(9, 5, 5) == 1
    shares = [share_limit(60, 40, rank) for rank in range(1, 41)]
    assert all(np.diff(shares) > 0)
    assert all(np.diff(shares, 2) < 1e-12)  # each further singular value is smaller
    assert all(share <= edge_share(60, 40, rank + 1) for rank, share in enumerate(shares))
    random = np.random.default_rng(0)
    s = np.linalg.svd(random.choice([-1.0, 1.0], (400, 240)), compute_uv=False) ** 2
    assert share_limit(400, 240, 60) == pytest.approx(s[:60].sum() / s.sum(), rel=0.01)


def test_figures_of_a_large_layer():
    assert edge_share(5120, 25600, 64) == pytest.approx(0.02618, abs=1e-5)
    assert share_limit(5120, 25600, 64) == pytest.approx(0.02535, abs=1e-5)


def test_draws_and_growth():
    enlarged = SETTING.enlarged(3)
    assert (enlarged.rows, enlarged.columns, enlarged.rank) == (21, 12, 6)
    assert white_residual.limit.growth == white_residual.edge.growth == (1, 2, 4)
    instance = dataclasses.replace(SETTING, law=noise.Rademacher(2.0)).draw(key=jax.random.key(0))
    assert instance.sizes == (7, 4)
    assert set(np.abs(np.asarray(instance.matrix)).ravel()) == {2.0}
    assert (bool(instance.white), bool(instance.gaussian)) == (True, False)
    rounded = dataclasses.replace(SETTING, law=noise.QuantiserResidual(3))
    quantised = drawn(rounded)
    assert not bool(quantised.white)
    assert 0 < np.max(np.abs(np.asarray(quantised.matrix))) < 1.0


def test_no_bound_outside_the_hypotheses():
    signs = Residual(np.eye(7, 4), 2, YES, NO)
    coloured = Residual(np.eye(7, 4), 2, NO, NO)
    for name, statement in STATEMENTS.items():
        for instance, holds in (
            (signs, name not in ("gaussian", "expected")),
            (coloured, name == "any_residual"),
        ):
            bound = statement.bound(instance)
            assert math.isfinite(float(bound.value)) == holds
            if not holds:
                with pytest.raises(Exception, match="does not hold, so there is no bound"):
                    bound.require()


def test_twice_the_rank_captures_more():
    instance = drawn(SETTING)
    statement = white_residual.gaussian
    with jax.enable_x64(True):
        broken = statement.loss(instance, statement.broken_estimate(instance))
        assert float(broken) == approx(1)
        assert float(statement.magnitude(instance)) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 4"):
        ResidualSetting(rows=7, columns=4, rank=5)
    with pytest.raises(ValueError, match="`rows` must be an integer >= 1"):
        ResidualSetting(rows=0, columns=4, rank=1)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 4"):
        Residual(np.eye(7, 4), 0, NO, NO)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 5"):
        share_limit(9, 5, 6)
    with pytest.raises(ValueError, match="must be a `Residual`; got ndarray"):
        white_residual.gaussian.bound(np.eye(3))
