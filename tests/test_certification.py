"""Laws of certificates: what the losses are, what does not change them, and that they cover."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from lowrank_theory.calibration import (
    AbstractCalibration,
    Calibration,
    RowSample,
    TriangularCalibration,
    calibrate,
)
from lowrank_theory.calibration._row_sample import SIZE
from lowrank_theory.calibration.overlap import check_unseen
from lowrank_theory.certification import (
    OutputCertificate,
    certify,
    certify_losses,
    unit_losses,
)
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, LowRank, Recovery, recover
from lowrank_theory.theorems.held_out_certificate import certificate
from tolerance import approx

DELTA = 0.05
UNITS, ROWS, INPUTS, OUTPUTS, RANK = 40, 3, 7, 5, 2


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, INPUTS)) * np.geomspace(1, 0.1, 7)


WEIGHTS = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS))
BIAS = np.linspace(-1, 1, OUTPUTS)
TRAINING, HELD_OUT = rows(1, 60), rows(2, UNITS, ROWS)


@pytest.fixture(scope="module")
def observed() -> Observed:
    return Observed(weights=WEIGHTS, bias=BIAS, activations=TRAINING)


@pytest.fixture(scope="module")
def recovery(observed: Observed) -> Recovery:
    return recover(observed, RANK, ActivationWeighted())


def parts(recovery: Recovery) -> tuple[np.ndarray, ...]:
    factors = recovery.factors
    return np.asarray(factors.left), np.asarray(factors.right), np.asarray(recovery.bias)


def with_factors(recovery: Recovery, left, right, bias=None) -> Recovery:
    factors = LowRank(np.asarray(left, float), np.asarray(right, float))
    return dataclasses.replace(recovery, approximation=factors, bias=bias)


def certified(observed: Observed, recovery: Recovery, held_out: ArrayLike = HELD_OUT, **changes):
    options = {"held_out": held_out, "failure_probability": DELTA, **changes}
    return certify(observed, recovery, **options)


def oracle(
    recovery: Recovery, held_out: np.ndarray, compressed: np.ndarray | None = None
) -> np.ndarray:
    """The losses, one unit and one entry of the outputs after another."""
    fitted = np.asarray(recovery.factors.left) @ np.asarray(recovery.factors.right)
    seen = held_out if compressed is None else compressed
    losses = []
    for unit, other in zip(held_out, seen, strict=True):
        error = norm = 0.0
        for row, changed in zip(np.atleast_2d(unit), np.atleast_2d(other), strict=True):
            for output in range(OUTPUTS):
                wanted = BIAS[output] + sum(row * WEIGHTS[:, output])
                got = np.asarray(recovery.bias)[output] + sum(changed * fitted[:, output])
                error, norm = error + (wanted - got) ** 2, norm + wanted**2
        losses.append(min(1.0, error / norm))
    return np.array(losses)


def assert_of(found: OutputCertificate, losses: np.ndarray, condition: float = 1):
    """The certificate is that of these losses."""
    assert found.mean == approx(losses.mean(), condition)
    assert found.largest == approx(losses.max(), condition)
    assert found.units == losses.size
    assert found.failure_probability == DELTA
    assert found.bound == approx(float(certificate(losses, 1.0, DELTA).value), condition)


# --- what the losses are -------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [HELD_OUT, HELD_OUT[:, 0]], ids=["rows", "one row each"])
def test_certificate_is_that_of_the_losses_by_hand(observed, recovery, held_out):
    assert_of(certified(observed, recovery, held_out), oracle(recovery, held_out))


def test_stored_in_single_precision(observed, recovery):
    single = jnp.asarray(HELD_OUT, jnp.float32)
    assert_of(certified(observed, recovery, single), oracle(recovery, np.asarray(single)))


def test_inside_a_compressed_network_the_replacement_sees_other_inputs(recovery):
    seen = HELD_OUT + 0.1 * rows(3, UNITS, ROWS)
    place = Observed(
        weights=WEIGHTS, bias=BIAS, activations=TRAINING, compressed_activations=TRAINING * 1.1
    )
    assert_of(
        certified(place, recovery, held_out_compressed=seen), oracle(recovery, HELD_OUT, seen)
    )
    streamed = Calibration.empty(INPUTS, compressed=True).update(TRAINING, TRAINING * 1.1)
    for layer in (place, Observed(weights=WEIGHTS, calibration=streamed)):
        with pytest.raises(ValueError, match=r"has compressed activations.*`held_out_compressed`"):
            certified(layer, recovery)


def test_losses_of_outputs_of_any_shape():
    outputs = np.arange(1.0, 25).reshape(2, 3, 2, 2)
    other = outputs.copy()
    other[0, 1, 0, 1] += 3
    other[1] *= -1
    assert unit_losses(outputs, other) == pytest.approx([9 / np.sum(outputs[0] ** 2), 1.0])
    assert unit_losses(outputs[:, 0, 0, 0], other[:, 0, 0, 0]) == pytest.approx([0.0, 1.0])


def test_a_unit_of_zeros_loses_nothing_or_everything():
    outputs, other = np.zeros((3, 2)), np.array([[0.0, 0.0], [1e-9, 0.0], [0.0, 5.0]])
    assert unit_losses(outputs, other).tolist() == [0.0, 1.0, 1.0]


def test_a_unit_that_is_wholly_wrong_counts_one():
    outputs = np.ones((4, 2))
    wrong = outputs * np.array([[1.0], [2.0], [10.0], [-1e150]])
    assert unit_losses(outputs, wrong).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert unit_losses(outputs, np.zeros((4, 2))).tolist() == [1.0] * 4


# --- what does not change them -------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_neither_the_units_of_the_outputs_nor_those_of_the_inputs_matter(observed, recovery, scale):
    expected = certified(observed, recovery)
    left, right, bias = parts(recovery)
    louder = with_factors(recovery, left, right * scale, bias * scale)
    layer = Observed(weights=WEIGHTS * scale, bias=BIAS * scale, activations=TRAINING)
    assert_same(certified(layer, louder), expected)
    wider = with_factors(recovery, left / scale, right, bias)
    layer = Observed(weights=WEIGHTS / scale, bias=BIAS, activations=TRAINING)
    assert_same(certified(layer, wider, HELD_OUT * scale), expected)


def assert_same(one: OutputCertificate, other: OutputCertificate):
    assert dataclasses.astuple(one) == approx(dataclasses.astuple(other), condition=10)


def test_rotated_outputs(observed, recovery):
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((OUTPUTS, OUTPUTS)))[0]
    left, right, bias = parts(recovery)
    turned = with_factors(recovery, left, right @ turn, bias @ turn)
    layer = Observed(weights=WEIGHTS @ turn, bias=BIAS @ turn, activations=TRAINING)
    assert_same(certified(layer, turned), certified(observed, recovery))


def test_the_rows_of_a_unit_are_taken_together(observed, recovery):
    whole = certified(observed, recovery)
    assert_same(certified(observed, recovery, HELD_OUT[:, ::-1]), whole)
    doubled = np.concatenate([HELD_OUT, HELD_OUT], axis=1)
    assert_same(certified(observed, recovery, doubled), whole)
    apart = certified(observed, recovery, HELD_OUT.reshape(-1, INPUTS))
    assert apart.units == UNITS * ROWS
    assert apart.mean != pytest.approx(whole.mean, rel=1e-3)


def test_the_order_of_the_units_does_not_matter(observed, recovery):
    order = np.random.default_rng(5).permutation(UNITS)
    whole = certified(observed, recovery)
    assert_same(certified(observed, recovery, HELD_OUT[order]), whole)
    losses = oracle(recovery, HELD_OUT)
    assert certify_losses(losses[order], DELTA).bound == certify_losses(losses, DELTA).bound


# --- the certificate -----------------------------------------------------------------------------


def test_a_perfect_recovery_is_certified_as_far_as_its_units_can_show(observed, recovery):
    perfect = with_factors(recovery, WEIGHTS, np.eye(OUTPUTS), BIAS)
    found = certified(observed, perfect)
    assert found.mean == pytest.approx(0, abs=1e-28)
    assert found.bound == pytest.approx(1 - DELTA ** (1 / UNITS))  # no certificate can be below
    assert found.require() is found


def test_less_failure_is_a_larger_bound(observed, recovery):
    bounds = [
        certified(observed, recovery, failure_probability=probability).bound
        for probability in (0.001, 0.01, 0.05, 0.2, 0.5)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1] > oracle(recovery, HELD_OUT).mean()


def test_more_units_are_a_smaller_bound():
    losses = np.tile([0.1, 0.3], 100)
    bounds = [certify_losses(losses[:count], DELTA).bound for count in (UNITS, 200)]
    assert 0.2 < bounds[1] < bounds[0] < 1


def test_what_is_certified_reads_as_a_sentence():
    found = certify_losses(np.tile([0.1, 0.3], UNITS // 2), DELTA)
    assert str(found) == (
        "With probability 0.95 the mean squared relative output error of new units, each clipped "
        f"at 1, is at most {found.bound:.3g}; that of 40 held-out units is 0.2."
    )
    assert found.relative_error == math.sqrt(found.bound)


@pytest.mark.parametrize("losses", [np.ones(UNITS), np.ones(2)])
def test_a_certificate_of_everything_is_vacuous_and_require_says_so(losses):
    found = certify_losses(losses, DELTA)
    assert found.bound == pytest.approx(1)
    assert found.vacuous
    with pytest.raises(RuntimeError, match=f"vacuous: {losses.size} units with a mean loss of"):
        found.require()
    assert not certify_losses(np.full(UNITS, 0.5), DELTA).vacuous


def test_outputs_of_zeros_are_not_certified(recovery):
    nothing = with_factors(recovery, np.zeros((INPUTS, 1)), np.zeros((1, OUTPUTS)))
    found = certified(Observed(weights=WEIGHTS, bias=BIAS), nothing)
    assert found.mean == 1
    assert found.vacuous


# --- that they cover -----------------------------------------------------------------------------


def failures(law, draws: int, limit) -> int:
    """How often `limit` of UNITS independent losses is below the mean of the law."""
    values, probabilities = map(np.array, law)
    drawn = np.random.default_rng(6).choice(values, (draws, UNITS), p=probabilities)
    return sum(limit(losses) < values @ probabilities for losses in drawn)


SKEWED = ((0.01, 1.0), (0.98, 0.02))


@pytest.mark.parametrize("law", [SKEWED, ((0.1, 0.5, 0.9), (0.5, 0.3, 0.2))])
def test_certificates_fail_no_more_often_than_promised(law):
    draws = 300
    missed = failures(law, draws, lambda losses: certify_losses(losses, 0.2).bound)
    assert stats.binomtest(missed, draws, 0.2, alternative="greater").pvalue > 1e-3


def test_a_normal_interval_does():
    """The control: of rare large losses most samples hold none."""

    def normal(losses):
        return losses.mean() + stats.norm.ppf(0.8) * losses.std(ddof=1) / math.sqrt(UNITS)

    missed = failures(SKEWED, 300, normal)
    assert stats.binomtest(missed, 300, 0.2, alternative="greater").pvalue < 1e-6


def test_certificates_of_a_layer_cover_the_mean_of_its_population(observed, recovery):
    """Units drawn with replacement from finitely many, over which the mean is known."""
    population = rows(7, 500, ROWS)
    mean = oracle(recovery, population).mean()
    generator = np.random.default_rng(8)
    draws = 200
    missed = sum(
        certified(observed, recovery, generator.choice(population, UNITS)).bound < mean
        for _ in range(draws)
    )
    assert stats.binomtest(missed, draws, DELTA, alternative="greater").pvalue > 1e-3


# --- what was seen before ------------------------------------------------------------------------

PLAIN = Observed(weights=WEIGHTS, bias=BIAS)
FRESH = HELD_OUT[:, 0]
SINGLE = TRAINING.astype(np.float32)
AGAIN = {
    "reversed": TRAINING[::-1],
    "shuffled": np.random.default_rng(9).permutation(TRAINING),
    "most of them": TRAINING[:40],
    "and more": np.concatenate([FRESH, TRAINING]),
    "one of them": np.concatenate([FRESH, TRAINING[7:8]]),
    "as units of rows": TRAINING[::-1].reshape(20, 3, INPUTS),
    "in single precision": SINGLE[::-1],
    "on the device": jnp.asarray(SINGLE[::-1]),
    "copied": TRAINING[::-1].repeat(2, axis=0),
}


def streamed_over(rows: np.ndarray) -> list[AbstractCalibration]:
    """What calibrations of several kinds know of the rows."""
    empty = Calibration.empty(INPUTS)
    parts = [empty.update(half) for half in (rows[30:], rows[:30])]
    triangle = TriangularCalibration.empty(INPUTS)
    return [parts[0].merge(parts[1]), calibrate(np.array_split(rows, 7), triangle)]


@pytest.mark.parametrize("held_out", AGAIN.values(), ids=AGAIN.keys())
def test_rows_of_the_calibration_are_found_however_they_come(observed, recovery, held_out):
    with pytest.raises(
        ValueError, match=r"the very rows of `observed.activations`: .* chance give"
    ):
        certified(observed, recovery, held_out)
    for seen in CALIBRATIONS:
        layer = Observed(weights=WEIGHTS, bias=BIAS, calibration=seen)
        with pytest.raises(ValueError, match=r"has the very rows of `observed.calibration`"):
            certified(layer, recovery, held_out)


CALIBRATIONS = [*streamed_over(TRAINING), Calibration.empty(INPUTS).update(SINGLE)]


def test_other_rows_are_not(observed, recovery):
    for layer in (observed, Observed(weights=WEIGHTS, calibration=CALIBRATIONS[0])):
        found = certified(layer, recovery)
        assert (found.copies, found.compared, found.seen) == (0, UNITS, 0)
        assert str(found).endswith(f"that of 40 held-out units is {found.mean:.3g}.")


def test_where_nothing_is_known_of_the_rows_the_certificate_says_so(recovery):
    unknown = dataclasses.replace(CALIBRATIONS[0], sample=None)
    for layer in (PLAIN, Observed(weights=WEIGHTS, calibration=unknown)):
        found = certified(layer, recovery, TRAINING)
        assert (found.copies, found.compared, found.seen) == (0, 0, 0)
        assert str(found).endswith("could not be compared with the rows of the calibration.")


@pytest.mark.slow
def test_a_calibration_of_more_rows_than_it_keeps_finds_the_share_that_it_promises():
    rows = np.random.default_rng(10).standard_normal((5 * SIZE, 4)).astype(np.float32)
    sample = Calibration.empty(4).update(rows).sample
    assert sample is not None
    known = RowSample.hashes_of(rows) >= sample.least
    assert known.sum() == SIZE  # one row alone is found with probability 1/5, and
    drawn = np.random.default_rng(11).permutation(known).reshape(-1, 20)
    assert drawn.any(axis=1).mean() == pytest.approx(1 - 0.8**20, abs=0.01)
    layer = Observed(weights=np.eye(4), calibration=Calibration.empty(4).update(rows))
    fit = recover(layer, 2, ActivationWeighted())
    new = np.random.default_rng(12).standard_normal((50, 4))
    found = certify(layer, fit, held_out=new, failure_probability=DELTA)
    assert found.seen == 0 < found.compared == np.sum(RowSample.hashes_of(new) >= sample.least) < 25
    with pytest.raises(ValueError, match=r"has the very rows of `observed.calibration`"):
        certify(layer, fit, held_out=rows[100:140], failure_probability=DELTA)


LAWS = {
    "binary": lambda random, count: random.integers(0, 2, (count, INPUTS)).astype(float),
    "rare ties": lambda random, count: random.integers(0, 4, (count, INPUTS)).astype(float),
    "one-hot": lambda random, count: np.eye(INPUTS)[random.zipf(1.5, count) % INPUTS],
    "tokens": lambda random, count: rows(13, 3000)[random.zipf(1.5, count) % 3000],
    "few active": lambda random, count: (
        rows(14, 9 * count)[random.choice(9 * count, count)]
        * (random.random((count, INPUTS)) < 0.1)
    ),
    "no ties": lambda random, count: random.standard_normal((count, INPUTS)),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_what_chance_repeats_is_counted_and_not_refused(law):
    for seed in range(40):
        random = np.random.default_rng(seed)
        training, units = law(random, 100), law(random, 80)
        sample = RowSample.of_all(training)
        found = check_unseen(units[:, None], sample, "training")
        some = {tuple(row) for row in training if row.any()}
        some_units = [tuple(row) for row in units if row.any()]
        assert found.compared == len(some_units)
        assert found.seen == sum(row in some for row in some_units)
        assert found.copies == len(some_units) - len(set(some_units))


def test_more_than_chance_repeats_is_refused():
    """A quarter of the rows come twice. Then a quarter of new ones would be among them, not all."""
    random = np.random.default_rng(15)
    training = rows(16, 150)[np.r_[:150, :25]]
    sample, new = RowSample.of_all(training), rows(17, 100)
    some = np.concatenate([training[:25], new[:75]])[random.permutation(100)]
    assert check_unseen(some[:, None], sample, "training").seen == 25
    with pytest.raises(ValueError, match=r"100 of the 100 .* chance gives about 29\."):
        check_unseen(training[random.permutation(150)[:100], None], sample, "training")


def test_documents_of_common_tokens_are_told_from_those_of_the_calibration():
    """Nine in ten tokens of a new document are in the calibration, and all of an old one."""
    vocabulary = rows(18, 20_000)
    for seed in range(20):
        random = np.random.default_rng(seed)
        topics, common = random.integers(0, 2000, (240, 1)), random.zipf(1.5, (240, 20))
        documents = vocabulary[(37 * topics + 11 * np.minimum(common, 300)) % 20_000]
        sample = RowSample.of_all(documents[:200].reshape(-1, INPUTS))
        assert check_unseen(documents[200:], sample, "training").seen < 20
        with pytest.raises(ValueError, match="the very rows of `training`: 800 of the 800"):
            check_unseen(documents[random.permutation(200)[:40]], sample, "training")


def test_copies_among_the_units_are_counted(observed, recovery):
    few = np.concatenate([HELD_OUT, HELD_OUT[3:6]])
    for layer in (observed, PLAIN):
        found = certified(layer, recovery, few)
        assert found.copies == 3
        assert "43 held-out units is" in str(found)
        assert " 3 of them are copies of others." in str(found)
    assert certified(PLAIN, recovery, HELD_OUT.repeat(2, axis=0)).copies == UNITS
    silent = np.where(np.arange(UNITS)[:, None, None] % 2, HELD_OUT, 0)
    assert certified(observed, recovery, silent).copies == 0
    for copied in (HELD_OUT.repeat(3, axis=0), HELD_OUT[:1].repeat(UNITS, axis=0)):
        with pytest.raises(ValueError, match=r"`held_out` has \d+ copies among its \d+ units"):
            certified(observed, recovery, copied)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": TRAINING}, "`held_out` has the very rows of `observed.activations`"),
        ({"held_out": TRAINING[:, None]}, "the very rows of `observed.activations`"),
        ({"held_out": TRAINING.astype(int)}, "`held_out` must be floating point"),
        ({"held_out": TRAINING[:, :3]}, "`held_out` has 3 inputs, but `weights` has 7"),
        ({"held_out": TRAINING[0]}, r"`held_out` must have shape \(units, inputs\)"),
        ({"held_out": TRAINING[:1]}, "`held_out` must have at least two units; got 1"),
        ({"held_out": TRAINING[:0]}, "`held_out` is empty"),
        ({"held_out": HELD_OUT[:, :0]}, "`held_out` is empty"),
        ({"held_out": np.where(HELD_OUT > 2, np.nan, HELD_OUT)}, "`held_out` has .* non-finite"),
        ({"held_out_compressed": HELD_OUT[:3]}, r"`held_out_compressed` must be of the rows of"),
        ({"held_out_compressed": HELD_OUT * np.inf}, "`held_out_compressed` has .* non-finite"),
        ({"failure_probability": 0.0}, "`failure_probability` must lie strictly between"),
        ({"failure_probability": 1.0}, "`failure_probability` must lie strictly between"),
    ],
)
def test_certify_refuses_what_it_cannot_use(observed, recovery, changes, message):
    with pytest.raises(ValueError, match=message):
        certified(observed, recovery, **changes)


def test_certify_refuses_another_layer(observed, recovery):
    with pytest.raises(ValueError, match=r"`recovery` is of a layer \(7, 5\), but .* \(7, 4\)"):
        certified(Observed(weights=WEIGHTS[:, :4]), recovery)
    outputs = TRAINING @ WEIGHTS
    with pytest.raises(ValueError, match=r"`observed` has no `weights`.*certify_losses"):
        certified(Observed(activations=TRAINING, outputs=outputs), recovery)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([0.1, 1.5], "`losses` must be from 0 to 1; got 1.5. Clip them"),
        ([0.1, -0.5], "`losses` must not be negative"),
        ([0.1], "`losses` must have at least two units"),
        ([0.1, math.nan], "`losses` has 1 non-finite"),
        ([0, 1], "`losses` must be floating point"),
    ],
)
def test_losses_of_ones_own_are_checked(losses, message):
    with pytest.raises(ValueError, match=message):
        certify_losses(losses, DELTA)


@pytest.mark.parametrize(
    ("outputs", "compressed_outputs", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 1)), r"must have the shape of `outputs`, \(3, 2\)"),
        (np.ones((3, 2)), np.full((3, 2), np.inf), "`compressed_outputs` has 6 non-finite"),
        (np.ones((3, 2), int), np.ones((3, 2)), "`outputs` must be floating point"),
        (np.ones((0, 2)), np.ones((0, 2)), "`outputs` is empty"),
        (np.ones(()), np.ones(()), r"`outputs` must have shape \(units\)"),
    ],
)
def test_unit_losses_refuse_what_are_no_outputs(outputs, compressed_outputs, message):
    with pytest.raises(ValueError, match=message):
        unit_losses(outputs, compressed_outputs)
