"""Laws of spending one budget on many layers, against trying all there is."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import assume, given
from hypothesis import strategies as st

from lowrank_theory._engine import allocation
from lowrank_theory.networks import Options, allocate
from tolerance import approx


@st.composite
def layers(draw):
    """A few layers with a handful of options each, and a budget that binds."""
    curves = []
    for _ in range(draw(st.integers(1, 4))):
        costs = draw(st.sets(st.integers(1, 40), max_size=7))
        losses = draw(st.lists(st.integers(0, 99), min_size=len(costs), max_size=len(costs)))
        curves.append(
            Options(np.array(sorted(costs), int), np.array(losses, float), draw(st.integers(1, 40)))
        )
    costs = [[cost for cost, _ in options(curve)] for curve in curves]
    cheapest, dense = sum(map(min, costs)), sum(curve.dense for curve in curves)
    assume(cheapest < dense)
    return curves, float(draw(st.integers(cheapest, dense - 1)))


def options(curve):
    """(cost, loss) of each option, by their definition."""
    known = zip(curve.costs, curve.losses, strict=True)
    return [(cost, loss) for cost, loss in known if cost < curve.dense] + [(curve.dense, 0.0)]


def best(curves, budget):
    """The least loss, by trying everything."""
    losses = [
        sum(loss for _, loss in chosen)
        for chosen in itertools.product(*map(options, curves))
        if sum(cost for cost, _ in chosen) <= budget
    ]
    return min(losses)


def assert_consistent(curves, budget, found):
    """What is said of the allocation is true of its options."""
    pairs = list(zip(curves, found.chosen, strict=True))
    assert found.cost == sum(c.cost(k) for c, k in pairs) <= budget
    assert found.loss == approx(sum(0.0 if k is None else c.losses[k] for c, k in pairs))
    assert all(k is None or 0 <= k < c.cheaper for c, k in pairs)


@given(layers())
def test_nothing_within_the_budget_loses_less(drawn):
    curves, budget = drawn
    found = allocate(curves, budget)
    assert_consistent(curves, budget, found)
    assert found.loss == approx(best(curves, budget))
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
    assert np.interp(budget, *knots.T) == approx(solved.fun)


@given(layers(), st.sampled_from([1e-9, 1e6]), st.integers(2, 1000))
def test_units_do_not_matter(drawn, loss_unit, cost_unit):
    curves, budget = drawn
    scaled = [
        Options(c.costs * cost_unit, c.losses * loss_unit, c.dense * cost_unit) for c in curves
    ]
    found, other = allocate(curves, budget), allocate(scaled, budget * cost_unit * (1 + 1e-12))
    assert other.loss == approx(loss_unit * found.loss)


@given(layers(), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_matter(drawn, random):
    curves, budget = drawn
    shuffled = random.sample(curves, len(curves))
    assert allocate(shuffled, budget).loss == approx(allocate(curves, budget).loss)


def test_the_step_of_greatest_gain_per_cost_is_not_always_the_best():
    one_step = Options.of_ranks(np.array([99.0, 10, 0]), per_rank=3, fixed=0, dense=7)
    two_steps = Options.of_ranks(np.array([99.0, 12, 6, 0]), per_rank=2, fixed=0, dense=7)
    found = allocate(
        [one_step, two_steps], 3.0 + 2 + 4
    )  # rank one each, and a budget of 4 for steps
    assert found.chosen == (0, 2)  # ranks one and three
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
    return Options.of_ranks(tails, inputs + outputs, outputs, inputs * outputs)


def test_many_layers_are_near_the_bound():
    random = np.random.default_rng(1)
    sizes = random.integers(16, 120, size=(40, 2))
    curves = [spectrum(random, int(n), int(k)) for n, k in sizes]
    found = allocate(curves, 0.4 * sum(curve.dense for curve in curves))
    assert found.lower_bound <= found.loss <= 1.001 * found.lower_bound


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_integer_program(seed):
    """Of several kinds in one list, too many to try, against a branch and bound of others."""
    random = np.random.default_rng(seed)
    curves = []
    for dense in random.integers(200, 4_000, size=12):
        costs = random.integers(dense // 20, dense, size=25)
        losses = np.exp(-4 * costs / dense) * random.exponential(size=25)
        curves.append(Options.of(costs.tolist(), losses, int(dense))[0])
    budget = float(random.uniform(0.2, 0.6)) * sum(curve.dense for curve in curves)
    found = allocate(curves, budget)
    assert_consistent(curves, budget, found)
    costs, losses = np.concatenate([options(curve) for curve in curves]).T
    layer = np.repeat(np.arange(len(curves)), [len(options(curve)) for curve in curves])
    one = (layer == np.arange(len(curves))[:, None]).astype(float)
    solved = scipy.optimize.milp(
        losses,
        constraints=[
            scipy.optimize.LinearConstraint(costs[None], ub=budget),
            scipy.optimize.LinearConstraint(one, 1, 1),
        ],
        integrality=np.ones(len(costs)),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.loss == approx(solved.fun)
    assert found.lower_bound <= solved.fun * (1 + 1e-9)


def test_a_lossless_rank_is_kept_when_the_budget_would_allow_the_dense_layer():
    lossless = Options.of_ranks(np.array([1.0, 0, 0]), 3, 0, 100)
    other = Options.of_ranks(np.array([1.0, 0.5]), 3, 0, 10)
    assert allocate([lossless, other], 109.0).chosen == (0, None)


CURVE = Options.of_ranks(np.array([1.0, 0.5, 0.25, 0]), per_rank=10, fixed=5, dense=30)


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
    ("costs", "losses", "dense", "message"),
    [
        ([1, 2], [1.0, -1.0], 9, "`losses` must be finite non-negative"),
        ([1], [np.nan], 9, "`losses` must be finite non-negative"),
        ([1, 2], [1.0], 9, "`costs` must be positive integers .* for 1 losses"),
        ([2, 2], [1.0, 0.5], 9, "`costs` must be positive integers in increasing order"),
        ([0, 2], [1.0, 0.5], 9, "`costs` must be positive integers in increasing order"),
        ([1.5], [1.0], 9, "`costs` must be positive integers in increasing order"),
        ([1], [1.0], 0, "`dense` must be an integer >= 1; got 0"),
    ],
)
def test_says_what_is_wrong_with_options(costs, losses, dense, message):
    with pytest.raises(ValueError, match=message):
        Options(np.array(costs), np.array(losses), dense)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([0.5, 1.0], "`losses` must not increase with the rank"),
        ([1.0, -1.0], "`losses` must be finite non-negative"),
        ([np.nan], "`losses` must be finite non-negative"),
        ([], "`losses` must be finite non-negative"),
    ],
)
def test_says_what_is_wrong_with_the_losses_of_ranks(losses, message):
    with pytest.raises(ValueError, match=message):
        Options.of_ranks(np.array(losses), 1, 0, 9)


@pytest.mark.parametrize(("name", "value"), [("per_rank", 0), ("fixed", -1)])
def test_says_what_is_wrong_with_ranks(name, value):
    given = {"per_rank": 1, "fixed": 0, "dense": 9, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        Options.of_ranks(np.array([1.0, 0.5]), **given)


def test_options_of_several_kinds_are_one_list():
    """Of equal costs the one that loses least; where each was comes with it."""
    costs, losses = [2, 4, 6, 3, 4, 20], [3.0, 2.0, 1.0, 2.5, 2.25, 0.0]
    options, places = Options.of(costs, losses, 10)
    assert options.costs.tolist() == [2, 3, 4, 6, 20]
    assert options.losses.tolist() == [3.0, 2.5, 2.0, 1.0, 0.0]
    assert places.tolist() == [0, 3, 1, 2, 5]
    assert Options.of([], [], 10)[0].costs.size == 0
