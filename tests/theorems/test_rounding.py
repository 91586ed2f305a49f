"""Rounding to nearest against exact fractions and NumPy, by hand, and under its laws."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws import map_is_a_loop, vmap_is_a_loop
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems.rounding import (
    KnownCodes,
    KnownSigns,
    RoundedLayer,
    RoundedSetting,
    rounding,
)
from lowrank_theory.verification.attack import replay
from statements import by_name, rounding_of, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = {name: s for name, s in by_name(rounding).items() if s.needs is RoundedLayer}
MANY, ONE = ("absmax", "peak", "outputs"), ("one_bit", "one_bit_worst")
every_statement = pytest.mark.parametrize("name", STATEMENTS)
EPS = float(np.finfo(float).eps)

# Uneven last groups, both axes, a group that holds all and more.
GRIDS: dict[str, dict[str, Any]] = {
    "no groups": {},
    "groups of inputs": {"group": 3},
    "groups of outputs": {"group": 2, "axis": 1},
    "one in a group": {"group": 1},
    "a group for more": {"group": 20, "axis": 1},
}


def layer(name: str, weights: Any, bits: int = 3, **grid: Any) -> RoundedLayer:
    """With as many bits as the statement is about."""
    weights = np.asarray(weights, float)
    rows = np.random.default_rng(5).standard_normal((6, weights.shape[0]))
    return RoundedLayer(weights, 1 if name in ONE else bits, activations=rows, **grid)


def random_weights(shape: tuple[int, int] = (7, 5), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) * np.exp(random.standard_normal(shape))


# --- an oracle ------------------------------------------------------------------------------------


def groups(instance: RoundedLayer) -> list[tuple[slice | int, ...]]:
    """Where the groups lie, one by one."""
    inputs, outputs = instance.weights.shape
    length = (inputs, outputs)[instance.axis]
    size = instance.group or length
    places = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    if instance.axis == 0:
        return [(place, column) for place in places for column in range(outputs)]
    return [(row, place) for place in places for row in range(inputs)]


def oracle(instance: RoundedLayer) -> dict[str, tuple[Any, Any]]:
    """Both sides of all statements, group by group."""
    weights, rounded = np.asarray(instance.weights), np.zeros(instance.weights.shape)
    levels = 2 ** (instance.bits - 1) - 1
    absmax = peak = signs = worst = 0.0
    for place in groups(instance):
        w = weights[place]
        n, energy, largest = w.size, np.sum(w**2), np.max(np.abs(w))
        if instance.bits == 1:
            mean = np.mean(np.abs(w))
            rounded[place] = np.where(w > 0, mean, -mean)
            signs += np.sum((np.abs(w) - mean) ** 2)
            worst += (n - 1) / n * energy
            continue
        step = largest / levels
        rounded[place] = step * np.rint(w / step) if step else 0.0
        a = (n - 1) / 4 / levels**2
        absmax += a / (1 + a) * energy
        peak += min((n - 1) * (step / 2) ** 2, np.sum(np.delete(w, np.argmax(np.abs(w))) ** 2))
    lost = np.sum((weights - rounded) ** 2)
    if instance.bits == 1:
        return {"one_bit": (lost, signs), "one_bit_worst": (lost, worst)}
    seen = np.asarray(instance.activations)
    through = np.linalg.norm(seen @ (weights - rounded))
    bound = np.linalg.norm(seen, 2) * math.sqrt(peak)
    return {"absmax": (lost, absmax), "peak": (lost, peak), "outputs": (through, bound)}


def exactly(instance: RoundedLayer) -> tuple[Fraction, Fraction, Fraction]:
    """What is lost, and `absmax` and `peak`, in fractions: at a tie both levels lose the same."""
    levels = 2 ** (instance.bits - 1) - 1
    lost, absmax, peak = Fraction(0), Fraction(0), Fraction(0)
    for place in groups(instance):
        w = [Fraction(float(x)) for x in np.atleast_1d(instance.weights[place])]
        energy, largest = sum(x * x for x in w), max(abs(x) for x in w)
        if largest:
            step = largest / levels
            lost += sum((x - step * round(x / step)) ** 2 for x in w)
        a = Fraction(len(w) - 1, 4 * levels**2)
        absmax += a / (1 + a) * energy
        peak += min(a * largest**2, energy - largest**2)
    return lost, absmax, peak


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_values_against_numpy(bits, grid):
    rows = np.random.default_rng(5).standard_normal((6, 7))
    instance = RoundedLayer(random_weights(), bits, activations=rows, **grid)
    expected = oracle(instance)
    assert set(expected) == set(ONE if bits == 1 else MANY)
    for name, values in expected.items():
        assert sides(STATEMENTS[name], instance) == approx(values, scale=1), name
        assert values[0] <= values[1] * (1 + 1e-12) + 1e-12


# Small integers and halves: ties, zeros and repeated largest weights.
entries = st.integers(-12, 12).map(lambda k: k / 2)
matrices = st.lists(st.lists(entries, min_size=3, max_size=3), min_size=4, max_size=4)


@given(matrices, st.sampled_from([2, 3, 4]), st.sampled_from(["no groups", "groups of inputs"]))
def test_bounds_hold_in_fractions_and_floats_follow(rows, bits, grid):
    instance = RoundedLayer(np.array(rows, float), bits, **GRIDS[grid])
    lost, absmax, peak = exactly(instance)
    assert lost <= peak <= absmax
    for name, bound in (("absmax", absmax), ("peak", peak)):
        realised, value = sides(STATEMENTS[name], instance)
        assert abs(realised - lost) <= rounding_of(STATEMENTS[name], instance)
        assert abs(value - bound) <= rounding_of(STATEMENTS[name], instance)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_last_digit_about_a_tie_is_within_the_allowance(bits):
    """Where the code of a weight is decided by rounding."""
    levels = 2 ** (bits - 1) - 1
    random = np.random.default_rng(bits)
    halves = random.integers(0, levels, (40, 3)) + 0.5
    digits = 1 + EPS * random.integers(-3, 4, halves.shape)
    for size in (1.0, 0.1, 1 / 3, math.pi):
        weights = size * np.concatenate([np.full((1, 3), float(levels)), halves * digits])
        instance = RoundedLayer(weights, bits)
        for name in ("absmax", "peak"):
            realised, bound = sides(STATEMENTS[name], instance)
            assert realised <= bound + rounding_of(STATEMENTS[name], instance)
            lost = exactly(instance)[0]
            assert abs(realised - lost) <= rounding_of(STATEMENTS[name], instance)


# --- where bounds are attained -------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [2, 5, 64])
def test_half_way_between_levels(bits, count):
    levels = 2 ** (bits - 1) - 1
    weights = np.ones((count, 2))
    weights[0] = 2 * levels
    seen = np.ones((1, count))
    seen[0, 0] = 0
    instance = RoundedLayer(weights, bits, activations=seen)
    lost = 2 * (count - 1)
    a = (count - 1) / (4 * levels**2)
    assert lost == approx(a / (1 + a) * np.sum(weights**2), side=1)
    assert exactly(instance) == (lost, lost, lost)
    assert sides(rounding.absmax, instance) == approx((lost, lost), side=1)
    assert sides(rounding.peak, instance) == approx((lost, lost), side=1)
    through = (count - 1) * math.sqrt(2)
    assert sides(rounding.outputs, instance) == approx((through, through), side=1)


def test_one_bit_of_one_weight_and_of_weights_of_one_size():
    alone = RoundedLayer(np.eye(5)[:, :2], 1)
    assert sides(rounding.one_bit, alone) == approx((1.6, 1.6))
    assert sides(rounding.one_bit_worst, alone) == approx((1.6, 1.6))
    alike = RoundedLayer(np.array([[0.3], [-0.3], [0.3]]), 1)
    assert sides(rounding.one_bit, alike) == pytest.approx((0, 0), abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_two_levels_lose_less(seed):
    weights = random_weights((6, 1), seed)[:, 0]
    least, _ = sides(rounding.one_bit, RoundedLayer(weights[:, None], 1))
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    levels = np.linspace(0, 2 * np.abs(weights).max(), 400)
    lost = np.sum((weights - levels[:, None, None] * signs) ** 2, axis=-1)
    assert least <= lost.min() <= least + 6 * (levels[1] / 2) ** 2


def test_the_worst_outputs_are_those_of_signs():
    """Over all weights that lie half way, on which side is the choice of the worst."""
    random = np.random.default_rng(0)
    seen = random.standard_normal((3, 6))
    worst, bound = 0.0, math.inf
    for signs in itertools.product([-1.0, 1.0], repeat=5):
        weights = np.concatenate([[6.0], (1 - 1e-9) * np.array(signs)])[:, None]
        realised, bound = sides(rounding.outputs, RoundedLayer(weights, 3, activations=seen))
        expected = np.linalg.norm(seen[:, 1:] @ np.array(signs))
        assert realised == pytest.approx(expected, rel=1e-8)
        worst = max(worst, realised / bound)
    assert np.linalg.norm(seen[:, 1:]) <= worst * bound * (1 + 1e-8) <= bound


# --- laws ----------------------------------------------------------------------------------------


@every_statement
@pytest.mark.parametrize("factor", [2.0**-300, 2.0**-20, 2.0**20, 2.0**300])
def test_both_sides_scale_with_the_units_of_the_weights(name, factor):
    instance = layer(name, random_weights(), group=3)
    other = layer(name, factor * random_weights(), group=3)
    degree = 1 if name == "outputs" else 2
    expected = np.array(sides(STATEMENTS[name], instance))
    assert_close(np.array(sides(STATEMENTS[name], other)) / factor**degree, expected)


@every_statement
@pytest.mark.parametrize("power", [-1000, -600, 600, 1000])
def test_nothing_is_said_where_squares_leave_float64(name, power):
    """But of outputs, which are not squared."""
    weights = np.ldexp(random_weights(), power)
    instance = layer(name, weights)
    realised, bound = sides(STATEMENTS[name], instance)
    if name == "outputs":
        assert 0 < realised <= bound < math.inf
        expected = sides(STATEMENTS[name], layer(name, random_weights()))
        assert_close(np.ldexp([realised, bound], -power), expected)
    else:
        assert bound == math.inf


@every_statement
def test_small_entries_beside_large_ones(name):
    """Whose squares are no float64, though those of the layer are."""
    weights = random_weights()
    weights[:, 1] *= 1e-160
    weights[1:, 2] = 1e-170
    realised, bound = sides(STATEMENTS[name], layer(name, weights))
    assert math.isfinite(bound)
    assert realised <= bound + rounding_of(STATEMENTS[name], layer(name, weights))


@pytest.mark.parametrize("name", MANY)
def test_losses_whose_squares_are_no_float64(name):
    realised, bound = sides(STATEMENTS[name], layer(name, [[1.0], [1e-150], [-1e-160]]))
    assert 0 <= realised <= bound + EPS
    assert bound < 1e-140 or name == "absmax"


@every_statement
def test_order_and_signs_within_a_group_do_not_matter(name):
    weights = random_weights()
    instance = layer(name, weights)
    random = np.random.default_rng(1)
    order, signs = random.permutation(7), random.choice([-1.0, 1.0], 7)
    rows = np.asarray(instance.activations)[:, order] * signs
    moved = RoundedLayer(weights[order] * signs[:, None], instance.bits, activations=rows)
    assert_close(sides(STATEMENTS[name], moved), sides(STATEMENTS[name], instance))


@pytest.mark.parametrize("name", ["absmax", "peak", *ONE])
def test_groups_of_outputs_are_groups_of_inputs_of_the_transpose(name):
    instance = layer(name, random_weights(), group=2, axis=1)
    other = layer(name, random_weights().T, group=2)
    assert_close(sides(STATEMENTS[name], other), sides(STATEMENTS[name], instance))


@every_statement
def test_zero_weights_lose_nothing(name):
    for weights in (np.zeros((4, 3)), np.zeros((1, 1))):
        assert sides(STATEMENTS[name], layer(name, weights)) == (0, 0)
        assert bool(STATEMENTS[name].bound(layer(name, weights)).holds)


@every_statement
def test_a_group_of_one_weight_loses_nothing(name):
    for grid in ({"group": 1}, {"group": 1, "axis": 1}):
        instance = layer(name, random_weights(), **grid)
        realised, bound = sides(STATEMENTS[name], instance)
        assert bound <= rounding_of(STATEMENTS[name], instance)
        assert realised <= rounding_of(STATEMENTS[name], instance)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_powers_of_two_that_are_levels_lose_nothing(bits):
    """With the largest L times a power of two, all integers up to L are levels."""
    levels = 2 ** (bits - 1) - 1
    weights = np.array([[levels], [-1.0], [0.0], [min(2, levels)]]) * 2.0**-7
    assert sides(rounding.peak, RoundedLayer(weights, bits))[0] <= 1e-30


@every_statement
@pytest.mark.parametrize("law", [vmap_is_a_loop, map_is_a_loop])
def test_many_at_once_are_each_as_alone(name, law):
    instances = [layer(name, random_weights(seed=seed), group=3) for seed in range(3)]
    statement = STATEMENTS[name]
    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *instances)
    law(lambda one: (statement.realised(one), statement.bound(one).value), stacked)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("law", [noise.Gaussian(1.0), noise.StudentT(1.0)], ids=str)
def test_clipped_grids_lose_no_more(bits, law):
    drawn = RoundedSetting(1, 24, 6, bits, group=8, law=law).draw(key=jax.random.key(0))
    weights = np.asarray(drawn.weights)
    clipped = round_to_nearest(weights, bits, group=8, clipped=True)
    with jax.enable_x64(True):
        lost = np.sum((weights - np.asarray(clipped.materialise())) ** 2)
    name = "one_bit" if bits == 1 else "peak"
    realised, _ = sides(STATEMENTS[name], drawn)
    assert lost <= realised * (1 + 1e-12)
    if bits == 1:
        assert lost == approx(realised)


def test_single_precision_is_rounded_as_what_it_is_in_double():
    weights = random_weights().astype(np.float32)
    instance, exact = RoundedLayer(weights, 3), RoundedLayer(weights.astype(float), 3)
    assert sides(rounding.absmax, instance) == sides(rounding.absmax, exact)


# --- settings, hypotheses, adversaries, controls --------------------------------------------------


def test_settings_say_what_is_drawn():
    shape: dict[str, Any] = {"samples": 3, "inputs": 8, "outputs": 4, "bits": 3, "group": 4}
    signs = noise.Rademacher(1.0)

    def drawn(**changes: Any) -> np.ndarray:
        setting = RoundedSetting(**(shape | changes))
        return np.asarray(setting.draw(key=jax.random.key(3)).weights)

    first = np.abs(drawn(law=signs, first=6.0))
    np.testing.assert_array_equal(first[[0, 4]], 6)
    np.testing.assert_array_equal(np.delete(first, [0, 4], axis=0), 1)
    turned = np.abs(drawn(law=signs, first=6.0, axis=1, group=2))
    np.testing.assert_array_equal(turned, np.tile([6.0, 1, 6, 1], (8, 1)))
    plain, dyadic = drawn(), drawn(dyadic=True)
    np.testing.assert_array_equal(np.frexp(np.abs(dyadic))[0], 0.5)
    ratio = plain / dyadic
    assert ratio.min() >= 1 and ratio.max() < 2


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_nothing_is_said_of_other_grids(name, bits):
    instance = RoundedLayer(random_weights(), bits, activations=np.eye(7))
    bound = STATEMENTS[name].bound(instance)
    (hypothesis,) = bound.hypotheses
    assert bool(hypothesis.holds) == ((bits == 1) == (name in ONE)) == bool(bound.holds)
    if not bound.holds:
        assert float(bound.value) == math.inf
        with pytest.raises(Exception, match=f"The hypothesis '{hypothesis.name}' does not hold"):
            bound.require()


@pytest.mark.parametrize("name", [name for name, s in STATEMENTS.items() if s.adversary])
def test_the_adversary_knows_the_estimate(name):
    statement: Any = STATEMENTS[name]
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: statement.adversary.start(key=jax.random.key(0)))
        for _ in range(4):
            free = jax.tree.map(lambda x: jnp.asarray(2 * random.standard_normal(x.shape)), shapes)
            instance, known = statement.adversary.play(free)
            found = statement.estimate(instance)
            assert_close(known, found)
            assert all(bool(h.holds) for h in statement.hypotheses(instance))
            assert 0 < replay(statement, free) <= 1


def test_adversaries_leave_nothing_out_of_one_group():
    """Any places below the largest weight, any weights."""
    places = np.array([[0.4, -1.6], [2.9, 0.5], [-0.1, 2.2]])
    free = (3 * np.arctanh(places / 3), np.log([2.0, 0.5]), np.ones((1, 4)))
    with jax.enable_x64(True):
        instance, known = KnownCodes().play(jax.tree.map(jnp.asarray, free))
        wanted = np.concatenate([[[3.0, 3.0]], places]) * [2.0, 0.5]
        assert_close(instance.weights, wanted)
        codes = np.concatenate([[[3.0, 3.0]], np.rint(places)]) * [2.0, 0.5]
        assert_close(known, codes)
        weights = random_weights((4, 2))
        instance, known = KnownSigns().play(jnp.asarray(weights))
    np.testing.assert_array_equal(instance.weights, weights)
    assert_close(known, np.sign(weights) * np.mean(np.abs(weights), axis=0))


@every_statement
def test_the_broken_estimate_breaks_the_bound(name):
    statement = STATEMENTS[name]
    with jax.enable_x64(True):
        broken = []
        for seed in range(5):
            instance = statement.control.draw(key=jax.random.key(seed))
            right = statement.estimate(instance)
            wrong = statement.broken_estimate(instance)
            np.testing.assert_array_equal(wrong, 2 * np.asarray(right))
            bound = float(statement.formula(instance, right))
            assert float(statement.loss(instance, right)) <= bound * (1 + 1e-12)
            broken.append(float(statement.loss(instance, wrong)) > bound * (1 + 1e-9))
    assert all(broken)


def test_names():
    assert list(STATEMENTS) == [*MANY, *ONE]
    assert [name for name, s in STATEMENTS.items() if s.sharp] == [*MANY, "one_bit_worst"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.ones(3)}, r"`weights` must have shape \(inputs, outputs\)"),
        ({"weights": np.full((3, 2), np.nan)}, "`weights` has 6 non-finite entries"),
        ({"weights": np.eye(3, dtype=int)}, "`weights` must be floating"),
        ({"weights": np.ones((0, 2))}, "`weights` is empty"),
        ({"activations": np.ones((5, 2))}, "`activations` has 2 inputs, but `weights` has 3"),
        ({"activations": np.ones(3)}, "`activations` must have shape"),
        ({"bits": 0}, "`bits` must be an integer from 1 to 8; got 0"),
        ({"bits": 9}, "`bits` must be an integer from 1 to 8; got 9"),
        ({"group": 0}, "`group` must be an integer >= 1; got 0"),
        ({"axis": 2}, "`axis` must be an integer from 0 to 1; got 2"),
    ],
)
def test_refusals(changes, message):
    sound: dict[str, Any] = {"weights": np.eye(3), "bits": 4, "activations": np.ones((5, 3))}
    with pytest.raises(ValueError, match=message):
        RoundedLayer(**(sound | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "`samples` must be an integer >= 1; got 0"),
        ({"bits": 10}, "`bits` must be an integer from 1 to 8; got 10"),
        ({"group": -1}, "`group` must be an integer >= 1; got -1"),
    ],
)
def test_settings_refuse(changes, message):
    sound: dict[str, Any] = {"samples": 3, "inputs": 4, "outputs": 2, "bits": 3}
    with pytest.raises(ValueError, match=message):
        RoundedSetting(**(sound | changes))


def test_statements_refuse_other_instances_and_missing_rows():
    for statement in STATEMENTS.values():
        with pytest.raises(ValueError, match="`instance` must be a `RoundedLayer`; got ndarray"):
            statement.bound(np.eye(3))
    with pytest.raises(
        ValueError, match=r"needs rows: give `RoundedLayer\(..., activations=...\)`"
    ):
        rounding.outputs.bound(RoundedLayer(np.eye(3), 3))
