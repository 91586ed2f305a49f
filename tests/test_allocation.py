"""Laws of spending one budget on many layers, against trying all there is."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_theory.networks import allocation
from lowrank_theory.networks.allocation import LossCurve, allocate


@st.composite
def layers(draw):
    """A few layers with a handful of options each, and a budget that binds."""
    curves = []
    for _ in range(draw(st.integers(1, 4))):
        losses = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8))
        curves.append(
            LossCurve(
                np.array(sorted(losses, reverse=True), float),
                per_rank=draw(st.integers(1, 5)),
                fixed=draw(st.integers(0, 3)),
                dense=draw(st.integers(1, 40)),
            )
        )
    costs = [[cost for cost, _ in options(curve)] for curve in curves]
    cheapest, dense = sum(map(min, costs)), sum(curve.dense for curve in curves)
    assume(cheapest < dense)
    return curves, float(draw(st.integers(cheapest, dense - 1)))


def options(curve):
    """(cost, loss) of each option, by their definition."""
    ranks = [(r * curve.per_rank + curve.fixed, loss) for r, loss in enumerate(curve.losses) if r]
    return [(cost, loss) for cost, loss in ranks if cost < curve.dense] + [(curve.dense, 0.0)]


def best(curves, budget):
    """The least loss, by trying everything."""
    losses = [
        sum(loss for _, loss in chosen)
        for chosen in itertools.product(*map(options, curves))
        if sum(cost for cost, _ in chosen) <= budget
    ]
    return min(losses)


def assert_consistent(curves, budget, found):
    """What is said of the allocation is true of its ranks."""
    losses = [0.0 if r is None else c.losses[r] for c, r in zip(curves, found.ranks, strict=True)]
    costs = [c.cost(r) for c, r in zip(curves, found.ranks, strict=True)]
    assert found.cost == sum(costs) <= budget
    assert found.loss == pytest.approx(sum(losses))
    assert all(r is None or 1 <= r <= c.paying() for c, r in zip(curves, found.ranks, strict=True))


@given(layers())
def test_nothing_within_the_budget_loses_less(drawn):
    curves, budget = drawn
    found = allocate(curves, budget)
    assert_consistent(curves, budget, found)
    assert found.loss == pytest.approx(best(curves, budget))
    assert found.lower_bound == found.loss


@given(layers(), st.integers(1, 3))
def test_the_bound_holds_where_some_are_given_up(drawn, followed):
    curves, budget = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "FOLLOWED", followed)
        found = allocate(curves, budget)
    assert_consistent(curves, budget, found)
    least = best(curves, budget)
    assert found.lower_bound <= least * (1 + 1e-12)
    assert found.loss >= least * (1 - 1e-12)


@given(layers())
def test_the_relaxation_is_a_linear_program(drawn):
    curves, budget = drawn
    points = [curve.points()[1] for curve in curves]
    knots = allocation._relaxed(points)[0]
    costs, losses = np.concatenate(points).T
    layer = np.repeat(np.arange(len(points)), [len(each) for each in points])
    solved = scipy.optimize.linprog(
        losses,
        A_ub=costs[None],
        b_ub=[budget],
        A_eq=layer == np.arange(len(points))[:, None],
        b_eq=np.ones(len(points)),
    )
    assert np.interp(budget, *knots.T) == pytest.approx(solved.fun, rel=1e-9, abs=1e-9)


@given(layers(), st.sampled_from([1e-9, 1e6]), st.integers(2, 1000))
def test_units_do_not_matter(drawn, loss_unit, cost_unit):
    curves, budget = drawn
    scaled = [
        LossCurve(
            c.losses * loss_unit, c.per_rank * cost_unit, c.fixed * cost_unit, c.dense * cost_unit
        )
        for c in curves
    ]
    found, other = allocate(curves, budget), allocate(scaled, budget * cost_unit * (1 + 1e-12))
    assert other.loss == pytest.approx(loss_unit * found.loss, rel=1e-9)


@given(layers(), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_matter(drawn, random):
    curves, budget = drawn
    shuffled = random.sample(curves, len(curves))
    assert allocate(shuffled, budget).loss == pytest.approx(allocate(curves, budget).loss)


def test_the_step_of_greatest_gain_per_cost_is_not_always_the_best():
    one_step = LossCurve(np.array([99.0, 10, 0]), per_rank=3, fixed=0, dense=7)
    two_steps = LossCurve(np.array([99.0, 12, 6, 0]), per_rank=2, fixed=0, dense=7)
    found = allocate(
        [one_step, two_steps], 3.0 + 2 + 4
    )  # rank one each, and a budget of 4 for steps
    assert found.ranks == (1, 3)
    assert (found.cost, found.loss, found.lower_bound) == (9, 10, 10)


def test_more_budget_never_loses_more():
    random = np.random.default_rng(0)
    curves = [spectrum(random, 12, 10) for _ in range(5)]
    dense = sum(curve.dense for curve in curves)
    losses = [allocate(curves, share * dense).loss for share in np.linspace(0.3, 0.99, 20)]
    assert np.all(np.diff(losses) <= 1e-12)


def spectrum(random, inputs, outputs):
    """The losses of a matrix of random, decaying singular values."""
    energies = np.sort(random.exponential(size=min(inputs, outputs)) ** 3)[::-1]
    tails = np.append(np.cumsum(energies[::-1])[::-1], 0) / energies.sum()
    return LossCurve(tails, inputs + outputs, outputs, inputs * outputs)


def test_many_layers_are_near_the_bound():
    random = np.random.default_rng(1)
    sizes = random.integers(16, 120, size=(40, 2))
    curves = [spectrum(random, int(n), int(k)) for n, k in sizes]
    found = allocate(curves, 0.4 * sum(curve.dense for curve in curves))
    assert found.lower_bound <= found.loss <= 1.001 * found.lower_bound


def test_a_lossless_rank_is_kept_when_the_budget_would_allow_the_dense_layer():
    lossless = LossCurve(np.array([1.0, 0, 0]), 3, 0, 100)
    other = LossCurve(np.array([1.0, 0.5]), 3, 0, 10)
    assert allocate([lossless, other], 109.0).ranks == (1, None)


CURVE = LossCurve(np.array([1.0, 0.5, 0.25, 0]), per_rank=10, fixed=5, dense=30)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (29.0, r"`budget` is 29 of the 60 .* cannot be met: .* cost 30, a share of 0.5"),
        (60.0, "`budget` is 60, and the dense layers cost only 60: keep them"),
        (-1.0, "`budget` must be a positive finite number; got -1.0"),
        (float("nan"), "`budget` must be a positive finite number; got nan"),
    ],
)
def test_says_what_cannot_be_met(budget, message):
    with pytest.raises(ValueError, match=message):
        allocate([CURVE, CURVE], budget)


@pytest.mark.parametrize(
    ("losses", "costs", "message"),
    [
        ([0.5, 1.0], (1, 0, 9), "`losses` must not increase with the rank"),
        ([1.0, -1.0], (1, 0, 9), "`losses` must be finite non-negative"),
        ([np.nan], (1, 0, 9), "`losses` must be finite non-negative"),
        ([], (1, 0, 9), "`losses` must be finite non-negative"),
        ([1.0], (0, 0, 9), "`per_rank` must be an integer >= 1; got 0"),
        ([1.0], (1, -1, 9), "`fixed` must be an integer >= 0; got -1"),
        ([1.0], (1, 0, 0), "`dense` must be an integer >= 1; got 0"),
    ],
)
def test_says_what_is_wrong_with_a_curve(losses, costs, message):
    with pytest.raises(ValueError, match=message):
        LossCurve(np.array(losses), *costs)
