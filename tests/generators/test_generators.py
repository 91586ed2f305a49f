"""Generators: exact where they promise exactness, right on average elsewhere."""

import dataclasses
import math
from collections.abc import Mapping

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import lowrank_theory as lrt
from laws import jit_is_eager, vmap_is_a_loop
from lowrank_theory import strategies
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import NoiseThenRelu, ReluThenNoise
from oracle import norm, svd
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

KEY = jax.random.key(0)
SAMPLES, INPUTS, OUTPUTS, RANK = 20, 8, 6, 2


def drawn(law, *arguments, key=KEY):
    """A draw in float64, compiled once for each law and shape, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _draw(law, arguments, key))


@eqx.filter_jit
def _draw(law, arguments, key):
    return law.draw(*arguments, key=key)


# --- spectra --------------------------------------------------------------------------------------


@given(strategies.profiles(), st.integers(1, 8))
def test_profiles_decrease_from_one(profile, count):
    with jax.enable_x64(True):
        values = np.asarray(profile.values(count))
    assert values.shape == (count,)
    assert values[0] == 1
    assert (np.diff(values) <= 0).all()
    assert (values >= 0).all()


def test_profiles_are_their_formulas():
    with jax.enable_x64(True):
        np.testing.assert_allclose(spectra.PowerLaw(2.0).values(3), [1, 1 / 4, 1 / 9], rtol=1e-15)
        np.testing.assert_allclose(
            spectra.Exponential(0.5).values(3), np.exp([0, -0.5, -1]), rtol=1e-15
        )
        np.testing.assert_allclose(spectra.Spiked(2, 4.0).values(4), [1, 1, 0.25, 0.25])
        np.testing.assert_allclose(spectra.Given((1.0, 4.0, 2.0)).values(5), [1, 0.5, 0.25, 0, 0])
        np.testing.assert_allclose(spectra.Given((1.0, 4.0, 2.0)).values(2), [1, 0.5])


# --- activations ----------------------------------------------------------------------------------

ACTIVATIONS: Mapping[str, activations.AbstractActivations] = {
    "isotropic": activations.Isotropic(),
    "Gaussian rows": activations.GaussianRows(spectra.PowerLaw(1.0)),
    "fixed spectrum": activations.FixedSpectrum(spectra.PowerLaw(1.0)),
    "low rank plus noise": activations.LowRankPlusNoise(3, 10.0),
    "massive, spread": activations.MassiveDirections(2, 10.0),
    "massive, aligned": activations.MassiveDirections(2, 10.0, aligned=True),
    "ReLU outputs": activations.ReluOutputs(16),
    "serial correlation": activations.SerialCorrelation(0.5, spectra.PowerLaw(1.0)),
    "rank-deficient": activations.RankDeficient(4),
}
all_activations = pytest.mark.parametrize("law", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())


@all_activations
def test_second_moment_is_that_of_the_rows_and_of_unit_power(law):
    samples = 20_000
    rows, moment = drawn(law, samples, INPUTS)
    assert rows.shape == (samples, INPUTS)
    assert rows.dtype == moment.dtype == np.float64
    assert np.trace(moment) == approx(INPUTS)
    sample = rows.T @ rows / samples
    # Five standard errors of an entry, from the fourth moments; dependent rows are worth a third.
    squares = (rows**2).T @ rows**2 / samples
    error = np.sqrt(np.maximum(squares - sample**2, 0) / samples)
    assert (np.abs(sample - moment) <= 5 * math.sqrt(3) * error + 1e-12).all()


@all_activations
def test_gaussian_rows_are_what_they_are_called(law):
    """Whitened, their entries have the kurtosis of a Gaussian, and rows do not correlate."""
    rows, moment = drawn(law, 20_000, INPUTS)
    values, vectors = np.linalg.eigh(moment)
    alive = values > 1e-10 * values[-1]
    white = rows @ vectors[:, alive] / np.sqrt(values[alive])
    kurtosis = np.mean(white**4) - 3
    serial = np.mean(white[1:] * white[:-1])
    if law.gaussian_rows:
        assert abs(kurtosis) <= 5 * math.sqrt(96 / white.size)
        assert abs(serial) <= 5 / math.sqrt(white.size)
    else:
        assert isinstance(
            law, activations.FixedSpectrum | activations.ReluOutputs | activations.SerialCorrelation
        )


def test_fixed_spectrum_is_exact():
    profile = spectra.PowerLaw(2.0)
    for samples, inputs in ((SAMPLES, INPUTS), (5, INPUTS)):
        rows, moment = drawn(activations.FixedSpectrum(profile), samples, inputs)
        values = svd(rows)[1]
        wanted = np.arange(1, values.size + 1.0) ** -2
        assert_close(values / values[0], wanted, condition=100)
        assert norm(rows) ** 2 == approx(samples * inputs)
        assert_close(moment, rows.T @ rows / samples, scale=norm(moment))


def test_ranks_and_ratios_of_activations():
    rows, moment = drawn(activations.RankDeficient(4), SAMPLES, INPUTS)
    assert np.linalg.matrix_rank(rows, rtol=1e-12) == 4
    assert np.linalg.matrix_rank(moment, rtol=1e-12) == 4
    for aligned in (False, True):
        _, moment = drawn(activations.MassiveDirections(2, 10.0, aligned), SAMPLES, INPUTS)
        values = np.linalg.eigvalsh(moment)[::-1]
        assert_close(values[:2], 100 * values[-1], condition=10)
        assert (np.count_nonzero(moment - np.diag(np.diag(moment))) == 0) == aligned
    _, moment = drawn(activations.LowRankPlusNoise(3, 10.0), SAMPLES, INPUTS)
    values = np.linalg.eigvalsh(moment)[::-1]
    assert_close(np.sum(values[:3] - values[-1]), 10 * INPUTS * values[-1], condition=10)
    rows, _ = drawn(activations.ReluOutputs(16), SAMPLES, INPUTS)
    assert (rows >= 0).all()
    assert (rows == 0).any()


def test_serial_correlation_is_as_stated():
    rows, moment = drawn(activations.SerialCorrelation(0.5), 20_000, INPUTS)
    lagged = rows[1:].T @ rows[:-1] / len(rows)
    np.testing.assert_allclose(lagged, 0.5 * moment, atol=5 * 2 / math.sqrt(len(rows)))


def test_perturbation_has_exactly_its_size():
    rows, _ = drawn(activations.Isotropic(), SAMPLES, INPUTS)
    for relative in (1e-6, 0.3, 10.0):
        changed = drawn(activations.Perturbed(relative), rows)
        assert norm(changed - rows) == approx(relative * norm(rows), condition=1e4)
    np.testing.assert_array_equal(drawn(activations.Identical(), rows), rows)


# --- targets --------------------------------------------------------------------------------------

ROWS, _ = drawn(activations.GaussianRows(spectra.PowerLaw(0.5)), SAMPLES, INPUTS)


def singular_values(matrix):
    return svd(matrix)[1]


@pytest.mark.parametrize("outputs", [OUTPUTS, 11])
def test_weights_have_exactly_their_spectrum(outputs):
    target = drawn(targets.ExactRank(spectra.PowerLaw(1.0), 3.0), ROWS, outputs, RANK)
    values = singular_values(target)
    size = 3 * math.sqrt(outputs)
    assert_close(values[:2], size * np.array([1, 0.5]) / math.sqrt(1.25))
    assert (values[2:] <= 1e-14 * values[0]).all()
    target = drawn(targets.ApproximateRank(spectra.PowerLaw(1.0), 3.0), ROWS, outputs, RANK)
    values = singular_values(target)
    assert_close(values / values[0], 1 / np.arange(1, values.size + 1))
    assert norm(target) == approx(size)


@pytest.mark.parametrize("samples", [SAMPLES, 5])
def test_outputs_have_exactly_their_spectrum(samples):
    rows = ROWS[:samples]
    law = targets.ExactOutputRank(spectra.PowerLaw(1.0), 7.0)
    target = drawn(law, rows, OUTPUTS, RANK)
    values = singular_values(rows @ target)
    assert_close(values[:2], [7, 3.5])
    assert (values[2:] <= 1e-12 * values[0]).all()
    assert np.linalg.matrix_rank(target, rtol=1e-10) == RANK
    law = targets.SchattenBall(0.7, 50.0)
    values = singular_values(rows @ drawn(law, rows, OUTPUTS, RANK))
    assert np.sum(values**0.7) == pytest.approx(50.0, rel=1e-9)


def test_opposed_weights_meet_the_weakest_activations_first():
    target = drawn(targets.OpposedToTheData(0.01), ROWS, OUTPUTS, RANK)
    left, values, _ = svd(target)
    assert_close(values, [1.01, 1.01, 1, 1, 1, 1])
    weakest = svd(ROWS)[2][::-1][:RANK]
    assert_close(norm(weakest @ left[:, :RANK]) ** 2, RANK, condition=100)


# --- noise ----------------------------------------------------------------------------------------

NOISE: Mapping[str, noise.AbstractNoise] = {
    "Gaussian": noise.Gaussian(0.5),
    "Rademacher": noise.Rademacher(0.5),
    "uniform": noise.Uniform(0.5),
    "Laplace": noise.Laplace(0.5),
    "Student t": noise.StudentT(0.5, 9.0),
    "by row": noise.Heteroskedastic(0.5, 4.0),
    "by column": noise.Heteroskedastic(0.5, 4.0, by_column=True),
    "correlated": noise.Correlated(0.5, 0.8),
    "outliers": noise.SparseOutliers(0.5, 0.01, 5.0),
}
all_noise = pytest.mark.parametrize("name", NOISE)
MANY = np.zeros((20_000, INPUTS)), np.zeros((INPUTS, OUTPUTS))


@all_noise
def test_entries_are_centred_with_their_standard_deviations(name):
    law = NOISE[name]
    entries = drawn(law, *MANY)
    assert entries.dtype == np.float64
    assert entries.shape == (20_000, OUTPUTS)
    variances = np.mean(entries**2, axis=0)
    wanted = np.full(OUTPUTS, 0.25)
    if name == "by column":
        variances, wanted = np.sort(variances), 0.25 / np.geomspace(4, 1, OUTPUTS) ** 2
    elif name == "by row":
        wanted = wanted * np.mean(np.geomspace(1, 1 / 4, 20_000) ** 2)
    elif name == "outliers":
        wanted = wanted * (0.99 + 0.01 * 25)
    spread = np.std(entries**2, axis=0) / math.sqrt(len(entries))
    if name == "by column":
        spread = np.sort(spread)
    assert (np.abs(variances - wanted) <= 5 * spread + 1e-15).all()
    # Student's fourth moment is finite, so the mean and the correlations have Gaussian limits.
    assert (np.abs(entries.mean(axis=0)) <= 5 * entries.std(axis=0) / math.sqrt(20_000)).all()


@all_noise
def test_entries_are_independent_or_correlated_as_stated(name):
    entries = drawn(NOISE[name], *MANY)
    across = np.corrcoef(entries.T)
    lag = np.abs(np.subtract.outer(np.arange(OUTPUTS), np.arange(OUTPUTS)))
    wanted = 0.8**lag if name == "correlated" else (lag == 0) * 1.0
    assert np.abs(across - wanted).max() <= 6 / math.sqrt(20_000)
    down = np.mean(entries[1:] * entries[:-1]) / np.mean(entries**2)
    assert abs(down) <= 6 / math.sqrt(entries.size)


@pytest.mark.parametrize(
    ("law", "reference"),
    [
        (noise.Gaussian(1.0), stats.norm()),
        (noise.Uniform(1.0), stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))),
        (noise.Laplace(1.0), stats.laplace(scale=1 / math.sqrt(2))),
        (noise.StudentT(1.0, 5.0), stats.t(5, scale=math.sqrt(3 / 5))),
    ],
    ids=["Gaussian", "uniform", "Laplace", "Student t"],
)
def test_distributions(law, reference):
    entries = drawn(law, *MANY).ravel()
    assert stats.kstest(entries, reference.cdf).pvalue > 1e-4


@all_noise
def test_sub_gaussian_scale_bounds_the_exponential_moments(name):
    """E exp(lambda E) <= exp(lambda^2 sigma^2 / 2), for each column, within sampling error."""
    law = NOISE[name]
    scale = law.sub_gaussian_scale
    if math.isinf(scale):
        assert name in ("Laplace", "Student t", "correlated")
        return
    entries = drawn(law, *MANY)
    for slope in (-1.5, -0.5, 0.5, 1.5):
        moments = np.exp(slope / scale * entries)
        error = moments.std(axis=0) / math.sqrt(len(entries))
        assert (moments.mean(axis=0) <= math.exp(slope**2 / 2) + 5 * error).all()


def test_exact_noise():
    assert not drawn(noise.Gaussian(0.0), *MANY).any()
    assert set(np.unique(np.abs(drawn(noise.Rademacher(0.5), *MANY)))) == {0.5}
    assert np.abs(drawn(noise.Uniform(0.5), *MANY)).max() <= 0.5 * math.sqrt(3)
    outliers = drawn(noise.SparseOutliers(1.0, 0.01, 1e6), *MANY)
    assert np.mean(np.abs(outliers) > 100) == pytest.approx(0.01, abs=5 * 0.1 / math.sqrt(120_000))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantiser_residual_is_within_half_a_step(bits):
    target = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS))
    target[:, 0] = 0
    residual = drawn(noise.QuantiserResidual(bits), np.eye(INPUTS), target)
    levels = 2 ** (bits - 1) - 1
    step = np.abs(target).max(axis=0) / levels
    assert (np.abs(residual) <= step / 2 * (1 + 1e-12)).all()
    grid = (target + residual)[:, 1:] / step[1:]
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-9)
    assert np.abs(np.round(grid)).max() == levels
    twice = drawn(noise.QuantiserResidual(bits), np.eye(INPUTS), target, key=jax.random.key(9))
    np.testing.assert_array_equal(residual, twice)  # not random


def test_opposing_noise_has_its_operator_norm_and_misleads():
    law = targets.ExactOutputRank(spectra.Flat(), 2.0)
    target = drawn(law, ROWS, OUTPUTS, RANK)
    opposing = drawn(noise.Opposing(1.0, RANK, 0.1), ROWS, target)
    assert_close(singular_values(opposing)[:4], [1.1, 1.1, 1, 1])
    mixed = singular_values(ROWS @ target + opposing)
    assert_close(mixed[:4], [1.1, 1.1, 1, 1])


# --- settings -------------------------------------------------------------------------------------

SETTINGS = {**strategies.REGIMES, **strategies.AFTER_RELU}
all_settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def arrays(problem):
    return jax.tree.map(np.asarray, problem)


@all_settings
def test_a_draw_is_consistent(setting):
    problem = arrays(setting.draw(key=KEY))
    observed, truth = problem.observed, problem.truth
    assert all(leaf.dtype in (np.float64, np.bool_) for leaf in jax.tree.leaves(problem))
    inputs = observed.layer_inputs
    np.testing.assert_array_equal(inputs, truth.layer_inputs)
    assert (observed.compressed_activations is None) == (
        isinstance(setting.mismatch, activations.Identical)
    )
    clean = inputs @ truth.target_weights
    if isinstance(setting.link, ReluThenNoise):
        wanted = np.maximum(clean, 0) + truth.noise
        assert observed.weights is None
    else:
        wanted = clean + truth.noise
        best = np.linalg.pinv(observed.activations, rcond=1e-12) @ wanted
        np.testing.assert_allclose(observed.weights, best, atol=1e-10 * norm(best))
    assert_close(observed.outputs, wanted, scale=norm(wanted))
    assert float(truth.noise_scale) == setting.noise.sub_gaussian_scale
    assert bool(truth.gaussian_noise)
    assert bool(truth.gaussian_rows) == setting.activations.gaussian_rows


def test_noise_before_the_relu():
    setting = dataclasses.replace(SETTINGS["outputs after a ReLU"], link=NoiseThenRelu())
    problem = arrays(setting.draw(key=KEY))
    clean = problem.truth.layer_inputs @ problem.truth.target_weights
    wanted = np.maximum(clean + problem.truth.noise, 0)
    assert_close(problem.observed.outputs, wanted, scale=norm(wanted))
    assert problem.observed.weights is None


@pytest.mark.parametrize("name", ["compressed activations", "ill-conditioned activations"])
def test_draws_under_jit_and_vmap_are_the_same(name):
    def draw(key):
        return SETTINGS[name].draw(key=key)

    jit_is_eager(draw, KEY, condition=1e3, scale=1)
    vmap_is_a_loop(draw, jax.random.split(KEY, 2), condition=1e3, scale=1)


@all_settings
def test_keys_decide(setting):
    one, same, other = (arrays(setting.draw(key=jax.random.key(k))) for k in (0, 0, 1))
    for left, right in zip(*map(jax.tree.leaves, (one, same)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.allclose(one.observed.activations, other.observed.activations)
    assert not np.allclose(one.truth.target_weights, other.truth.target_weights)
    assert np.allclose(one.truth.noise, other.truth.noise) == (not one.truth.noise.any())


def test_parts_of_a_draw_do_not_share_randomness():
    """Target and noise are as independent of the activations as different keys would make them."""
    setting = lrt.Setting(samples=300, inputs=8, outputs=8, rank=8, noise=noise.Gaussian(1.0))
    problem = arrays(setting.draw(key=KEY))
    rows, errors = problem.observed.activations, problem.truth.noise
    assert abs(np.corrcoef(rows.ravel(), errors.ravel())[0, 1]) <= 5 / math.sqrt(rows.size)


@pytest.mark.parametrize("key", [jax.random.key(0), np.random.default_rng(0)])
def test_numbers_beyond_float64_are_refused(key):
    setting = lrt.Setting(9, 6, 5, 2, noise=lrt.Gaussian(1.7e308))
    with pytest.raises(ValueError, match="`noise` together are too large"):
        setting.draw(key=key)
