"""Calibrations made from the network itself have the moments that its statistics say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_theory.data_constrained import (
    ChannelStatistics,
    Synthetic,
    added,
    averaged,
    keeping_mean,
    natural_noise,
    rectified,
)
from lowrank_theory.networks import Bytes, Parameters, compress, observe
from lowrank_theory.quantisation import GPTQ, RoundToNearest, round_to_nearest
from lowrank_theory.recovery import ActivationWeighted
from lowrank_theory.sparsification import SparseGPT

CHANNELS, SAMPLES = 6, 4_000


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def statistics(seed: int, *shape: int) -> ChannelStatistics:
    random = np.random.default_rng(seed)
    shape = shape or (CHANNELS,)
    return ChannelStatistics(random.normal(size=shape), np.exp(random.normal(size=shape) / 2))


def noise(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (SAMPLES, CHANNELS))


PARAMETERS = {
    "first": normal(0, CHANNELS, CHANNELS),
    "shift": normal(1, CHANNELS),
    "second": normal(2, CHANNELS, CHANNELS),
    "other": normal(3, CHANNELS),
    "third": normal(4, CHANNELS, 5),
}
KNOWN = {"['shift']": statistics(5), "['other']": statistics(6)}


def plain(parameters: dict[str, Any], x: jax.Array) -> jax.Array:
    z = x @ parameters["first"] + parameters["shift"]
    y = jax.nn.relu(z) @ parameters["second"] + parameters["other"]
    return y @ parameters["third"]


def residual(parameters: dict[str, Any], x: jax.Array) -> jax.Array:
    """A sum, a mean over places, and a checkpoint."""

    def block(x: jax.Array) -> jax.Array:
        y = jax.nn.relu(x) @ parameters["second"]
        return jax.nn.relu(x) + jax.nn.relu(parameters["other"] + y)

    z = jnp.tile(x[:, None] @ parameters["first"], (1, 4, 1)) + parameters["shift"]
    return jax.checkpoint(block)(z).mean(axis=1) @ parameters["third"]


def observed(*arguments: Any) -> dict[str, Any]:
    return dict(observe(*arguments))


def drawn(correlated: bool, known=KNOWN, inputs=noise) -> Synthetic:
    return Synthetic(known, inputs, key=jax.random.key(0), batches=3, correlated=correlated)


def assert_moments(calibration: Any, expected: ChannelStatistics, width: float = 5.0) -> None:
    count = float(calibration.count)
    variance = np.diagonal(calibration.gram(centred=True)) / count
    error = np.abs(np.asarray(calibration.mean) - expected.mean) / expected.deviation
    assert (error < width / np.sqrt(count)).all()
    np.testing.assert_allclose(np.sqrt(variance), expected.deviation, rtol=0.05)


def test_independent_samples_have_the_moments_of_the_closed_forms():
    seen = observed(plain, PARAMETERS, drawn(False))
    assert_moments(seen["['second']"], rectified(KNOWN["['shift']"]))
    assert_moments(seen["['third']"], KNOWN["['other']"])
    covariance = np.asarray(seen["['second']"].gram(centred=True))
    deviations = np.sqrt(np.diagonal(covariance))
    correlations = covariance / np.outer(deviations, deviations) - np.eye(CHANNELS)
    assert np.abs(correlations).max() < 5 / np.sqrt(3 * SAMPLES)
    not_followed = observe(plain, PARAMETERS, drawn(False)).not_followed
    assert not_followed["['shift']"] == ("what it is added to is drawn from statistics",)


def test_sums_and_means_over_places_are_those_of_the_closed_forms():
    seen = observed(residual, PARAMETERS, drawn(False))
    each = map(rectified, KNOWN.values())
    assert_moments(seen["['third']"], averaged(added(*each), 4))


def test_correlated_samples_have_the_statistics_exactly_and_the_correlations_of_the_weights():
    seen = observed(plain, PARAMETERS, drawn(True))
    known, calibration = KNOWN["['other']"], seen["['third']"]
    np.testing.assert_allclose(calibration.mean, known.mean, rtol=1e-5, atol=1e-6)
    covariance = np.asarray(calibration.gram(centred=True)) / float(calibration.count)
    np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)), known.deviation, rtol=1e-5)
    # What a layer of these inputs gives without the draws is correlated as the draws are.
    before = np.asarray(seen["['second']"].gram(centred=True)) / float(calibration.count)
    weights = np.asarray(PARAMETERS["second"], np.float64)
    given = weights.T @ before @ weights
    size = np.sqrt(np.diagonal(given))
    expected = given / np.outer(size, size) * np.outer(known.deviation, known.deviation)
    np.testing.assert_allclose(covariance, expected, atol=0.05 * np.abs(expected).max())


def test_a_constant_channel_stays_at_its_mean():
    shift = KNOWN["['shift']"]
    still = ChannelStatistics(shift.mean, np.zeros(CHANNELS))
    blank = PARAMETERS | {"first": jnp.zeros((CHANNELS, CHANNELS))}
    for correlated, parameters in ((False, PARAMETERS), (True, PARAMETERS), (True, blank)):
        seen = observed(plain, parameters, drawn(correlated, {**KNOWN, "['shift']": still}))
        found = seen["['second']"]
        np.testing.assert_allclose(found.mean, np.maximum(shift.mean, 0), rtol=1e-6)
        assert np.abs(found.gram(centred=True)).max() < 1e-6


def test_the_same_key_gives_the_same_batches():
    one, two = (observed(plain, PARAMETERS, drawn(False))["['third']"].gram() for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("correlated", [False, True])
def test_layers_of_a_loop_have_statistics_of_their_own(correlated):
    parameters = {"weights": normal(0, 3, CHANNELS, CHANNELS), "shifts": normal(1, 3, CHANNELS)}

    def function(parameters: dict[str, Any], x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, each: dict[str, Any]) -> tuple[jax.Array, None]:
            return x @ each["weights"] + each["shifts"][None], None

        return lax.scan(layer, x, parameters)[0]

    known = statistics(3, 3, CHANNELS)
    seen = observed(function, parameters, drawn(correlated, {"['shifts']": known}))["['weights']"]
    for slice_number in (1, 2):
        mean, deviation = known.mean[slice_number - 1], known.deviation[slice_number - 1]
        assert_moments(seen[slice_number], ChannelStatistics(mean, deviation))


def test_the_sum_is_found_behind_moves_and_calls_but_not_within_other_parameters():
    def direct(parameters: dict[str, Any], x: jax.Array) -> jax.Array:
        shift = jnp.reshape(parameters["shift"].astype(jnp.float32), (1, -1))
        return jax.jit(lambda y: shift + y)(x @ parameters["first"]) @ parameters["third"]

    known = {"['shift']": KNOWN["['shift']"]}
    seen = observed(direct, PARAMETERS, drawn(False, known))
    assert_moments(seen["['third']"], KNOWN["['shift']"])

    def hidden(parameters: dict[str, Any], x: jax.Array) -> jax.Array:
        shift = parameters["shift"][None] + parameters["other"]
        return (x @ parameters["first"] + shift) @ parameters["third"]

    with pytest.raises(ValueError, match=r"\['shift'\], whose sum with the outputs .*not found"):
        observe(hidden, PARAMETERS, drawn(False, known))


@pytest.mark.parametrize("method", [ActivationWeighted(), GPTQ(), SparseGPT(shares=(0.5,))])
def test_compress_takes_it(method):
    target = Parameters(0.8) if isinstance(method, ActivationWeighted) else Bytes(0.8)
    compressed = compress(plain, PARAMETERS, drawn(True), target, method=method)
    assert any(layer.rank or layer.size for layer in compressed.layers.values())
    outputs = compressed.function(compressed.parameters, noise(jax.random.key(9)))
    assert outputs.shape == (SAMPLES, 5)


def test_several_methods_compete():
    methods = [ActivationWeighted(), RoundToNearest((4,))]
    compressed = compress(plain, PARAMETERS, drawn(True), Bytes(0.4), method=methods)
    assert {layer.method for layer in compressed.layers.values()} == {"RoundToNearest"}


def test_the_mean_output_is_kept():
    seen = observed(plain, PARAMETERS, drawn(False))["['second']"]
    weights = np.asarray(PARAMETERS["second"])
    rounded = round_to_nearest(weights, 2)
    corrected = keeping_mean(rounded, weights, seen)
    mean = np.asarray(seen.mean, np.float32)
    np.testing.assert_allclose(corrected.apply(mean[None])[0], mean @ weights, rtol=1e-4)
    with pytest.raises(ValueError, match="must be of one layer"):
        keeping_mean(rounded, weights[:, :2], seen)


def test_natural_noise_has_mean_zero_deviation_one_and_neighbours_alike():
    noise = np.asarray(natural_noise(50, 16, 16, 3, key=jax.random.key(0)), np.float64)
    assert noise.shape == (50, 16, 16, 3)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=1e-4)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) > 0.5  # 0 of white noise
    assert np.mean(noise[..., 0] * noise[..., 1]) == pytest.approx(0.9, abs=0.05)
    with pytest.raises(ValueError, match="`width` must be"):
        natural_noise(1, 2, 0, 1, key=jax.random.key(0))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="`statistics` is empty: without batch normalisation"):
        drawn(False, {})
    with pytest.raises(ValueError, match=r"`statistics` has \['nowhere'\], which is no array"):
        observe(plain, PARAMETERS, drawn(False, {"['nowhere']": statistics(0)}))
    with pytest.raises(ValueError, match=r"is of \(2,\) channels, but the leaf has shape \(6,\)"):
        observe(plain, PARAMETERS, drawn(False, {"['shift']": statistics(0, 2)}))
    with pytest.raises(ValueError, match=r"\['second'\], whose sum .*Name the leaf that is added"):
        observe(plain, PARAMETERS, drawn(False, {"['second']": statistics(0, 6, 6)}))
    with pytest.raises(ValueError, match="compress without `sequential`"):
        compress(plain, PARAMETERS, drawn(True), Parameters(0.8), sequential=True)
    with pytest.raises(ValueError, match="observe without `compressed`"):
        observe(plain, PARAMETERS, drawn(True), compressed=(plain, PARAMETERS))
