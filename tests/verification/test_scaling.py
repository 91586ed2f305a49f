"""`scale` finds the exponents that it should, and says when theory's are others."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory import cli, theorems
from lowrank_theory._random import normal
from lowrank_theory.cli import _options
from lowrank_theory.theorems._theorem import (
    UPPER_IN_EXPECTATION,
    AbstractStatement,
    Hypothesis,
    Rate,
)
from lowrank_theory.verification import Slope, scale
from tolerance import approx, assert_close


class Number(eqx.Module):
    """A random number around a power of its size."""

    value: Float[Array, ""]
    size: Float[Array, ""]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (1,)


class Power(eqx.Module):
    size: float
    exponent: float = 1.5

    def draw(self, *, key: PRNGKeyArray) -> Number:
        value = jnp.asarray(self.size) ** self.exponent * (1 + 0.1 * normal(key, ()))
        return Number(value, jnp.asarray(self.size))


def settings(exponent: float = 1.5) -> Mapping[float, Power]:
    return {size: Power(size, exponent) for size in (1.0, 2.0, 4.0, 8.0)}


class AbstractPowerLaw(AbstractStatement):
    """|value| <= 2 size^1.5."""

    kind = UPPER_IN_EXPECTATION
    needs = Number
    regimes = MappingProxyType({"one": Power(1.0)})
    control = Power(1.0)

    def hypotheses(self, instance: Any) -> tuple[Hypothesis, ...]:
        return ()

    def estimate(self, instance: Any) -> Array:
        return instance.value

    def broken_estimate(self, instance: Any) -> Array:
        return 10 * instance.value

    def formula(self, instance: Any, estimate: Any) -> Array:
        return 2 * instance.size**1.5

    def loss(self, instance: Any, estimate: Any) -> Array:
        return jnp.abs(estimate)

    def magnitude(self, instance: Any) -> Array:
        return instance.size


class Right(AbstractPowerLaw):
    rates = (Rate("size", settings(), 1.5, 1.5), Rate("size", settings(1.0), None, 1.5))


class Wrong(AbstractPowerLaw):
    rates = (Rate("size", settings(1.4), 1.5, 1.5),)


def test_the_slope_of_a_power_law_is_its_exponent():
    first, second = scale(Right(), key=jax.random.key(0))
    assert first.agrees and second.agrees
    assert first.realised.low <= 1.5 <= first.realised.high
    assert 0 < first.realised.high - first.realised.low < 0.03
    assert second.realised.slope == pytest.approx(1.0, abs=0.03)
    assert second.realised.predicted is None
    assert first.bound.slope == approx(1.5)
    assert first.values == (1, 2, 4, 8)
    assert_close(first.bound_means, 2 * np.array(first.values) ** 1.5)
    np.testing.assert_allclose(first.realised_means, np.array(first.values) ** 1.5, rtol=0.05)


def test_a_wrong_exponent_is_told():
    (fit,) = scale(Wrong(), key=jax.random.key(0))
    assert not fit.agrees
    assert not fit.realised.agrees
    assert fit.bound.agrees


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        (fit, _) = scale(Right(), key=jax.random.key(seed), trials=32)
        hits += fit.realised.low <= 1.5 <= fit.realised.high
    assert hits >= 95  # at 99 %, less than a probability of 1e-3


def test_the_interval_has_to_lie_within_the_tolerance():
    assert Slope(1.0, 0.96, 1.04, 1.0).agrees
    assert not Slope(1.0, 0.94, 1.04, 1.0).agrees
    assert not Slope(1.0, 0.96, 1.06, 1.0).agrees
    assert not Slope(float("nan"), float("nan"), float("nan"), 1.0).agrees
    assert Slope(float("nan"), float("nan"), float("nan"), None).agrees


def test_what_states_no_rate_is_refused():
    with pytest.raises(ValueError, match=r"planted_rank\.gaussian states no rates"):
        scale(theorems.planted_rank.gaussian, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`trials` must be an integer >= 2; got 1"):
        scale(Right(), key=jax.random.key(0), trials=1)


def test_the_command_prints_and_writes_its_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_options, "STATEMENTS", {"right.law": Right(), "wrong.law": Wrong()})
    file = tmp_path / "rates.json"
    assert cli.main(["scale", "--json", str(file)]) == 1
    assert [row["agrees"] for row in json.loads(file.read_text())] == [True, True, False]
    shown = capsys.readouterr().out
    assert "2 of 2 rates agree" in shown and "0 of 1 rates agree" in shown
    assert cli.main(["scale", "--only", "right.law"]) == 0
    monkeypatch.setattr(_options, "STATEMENTS", {"none.law": dataclasses.replace(Right())})
    monkeypatch.setattr(Right, "rates", ())
    assert cli.main(["scale"]) == 2
    assert "none of these states a rate" in capsys.readouterr().err
