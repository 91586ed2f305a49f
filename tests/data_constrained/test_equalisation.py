"""Preconditioning keeps the function, evens out ranges, and takes what is known along."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_theory.data_constrained import (
    ChannelStatistics,
    Pair,
    absorb_high_means,
    channel_statistics,
    equalise,
    equalising_factors,
    find_pairs,
    folded,
    rescaled,
)
from lowrank_theory.models.resnet import ResNet
from lowrank_theory.networks import batch_normalisations, digits_cnn_network, digits_data


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def of_digits() -> tuple[Any, Any, dict[str, ChannelStatistics], dict[str, str | None]]:
    network, parameters = digits_cnn_network()
    named = batch_normalisations(parameters)
    shifts: dict[str, str | None] = {each.kernel: each.shift for each in named}
    statistics = channel_statistics(parameters, named)
    return network.apply, folded(parameters, named), statistics, shifts


def relative(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.max(np.abs(one - other)) / np.max(np.abs(one)))


def ranges(kernel: Any, axis: int) -> np.ndarray:
    sizes = np.abs(np.asarray(kernel, np.float64))
    return np.moveaxis(sizes, axis, -1).reshape(-1, sizes.shape[axis]).max(axis=0)


def test_pairs_of_a_real_network_are_found_and_equalised():
    function, parameters, statistics, shifts = of_digits()
    images = digits_data().held_out_images[:8]
    pairs = find_pairs(function, parameters, images, shifts)
    names = [(pair.first[2:7], pair.second[2:7]) for pair in pairs]
    assert names == [("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "conv4")]
    random = np.random.default_rng(0)
    spread = [np.exp(random.uniform(-2, 2, len(statistics[str(p.shift)].mean))) for p in pairs]
    worse = rescaled(parameters, pairs, spread, statistics)
    assert relative(function(parameters, images), function(worse.parameters, images)) < 1e-5
    better = equalise(function, worse.parameters, images, pairs, worse.statistics)
    assert relative(function(parameters, images), function(better.parameters, images)) < 1e-5
    for number in range(1, 4):
        first, second = (better.parameters[f"conv{k}"]["kernel"] for k in (number, number + 1))
        np.testing.assert_allclose(ranges(first, -1), ranges(second, -2), rtol=1e-3)
    # Wherever it starts from, it ends there; once there, it stays.
    direct = equalise(function, parameters, images, pairs, statistics)
    again = equalise(function, better.parameters, images, pairs, better.statistics)
    for path, expected in direct.statistics.items():
        for found in (better, again):
            np.testing.assert_allclose(found.statistics[path].mean, expected.mean, rtol=1e-3)
            np.testing.assert_allclose(
                found.statistics[path].deviation, expected.deviation, rtol=1e-3
            )


def test_statistics_follow_the_channels():
    function, parameters, statistics, shifts = of_digits()
    del function
    pair = Pair(*list(shifts)[:2], shift=next(iter(shifts.values())))
    factors = np.exp(normal(0, 16))
    found = rescaled(parameters, [pair], [factors], statistics)
    kept, scaled = (each["conv1"]["norm"]["shift"] for each in (parameters, found.parameters))
    np.testing.assert_allclose(scaled, kept * factors, rtol=1e-6)
    known, after = statistics[str(pair.shift)], found.statistics[str(pair.shift)]
    np.testing.assert_allclose(after.mean, known.mean * factors, rtol=1e-6)
    np.testing.assert_allclose(after.deviation, known.deviation * factors, rtol=1e-6)
    untouched = list(statistics)[1]
    assert found.statistics[untouched] is statistics[untouched]


def test_residual_blocks_are_pairs_within_only():
    kernels = {"stem": (3, 3, 3, 4)}
    network = ResNet(8)

    def layer(seed: int, *shape: int) -> dict[str, jax.Array]:
        return {"kernel": 0.3 * normal(seed, *shape), "bias": 0.1 * normal(seed + 1, shape[-1])}

    parameters = {
        "stem": layer(0, *kernels["stem"]),
        "stages": [
            [{"first": layer(2, 3, 3, 4, 4), "second": layer(4, 3, 3, 4, 4)}] for _ in range(3)
        ],
        "head": layer(6, 4, 10),
    }
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    shifts = {n: n.replace("kernel", "bias") for n in names if n.endswith("['kernel']")}

    def function(parameters: Any, images: Any) -> Any:  # without strides: one width throughout
        return network.apply(parameters, images)

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    # The first blocks of later stages widen; with one width the shortcut adds no zeros.
    pairs = find_pairs(function, parameters, images, shifts)
    within = [f"['stages'][{stage}][0]" for stage in range(3)]
    found = [(pair.first, pair.second) for pair in pairs]
    assert found == [(f"{w}['first']['kernel']", f"{w}['second']['kernel']") for w in within]


def flat(parameters: Any, images: Any) -> Any:
    x = lax.conv_general_dilated(
        images, parameters["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.leaky_relu(x + parameters["bias"]).reshape(len(images), -1)
    return x @ parameters["dense"]


def depthwise(parameters: Any, images: Any) -> Any:
    x = jax.nn.relu(images @ parameters["kernel"] + parameters["bias"])
    x = lax.conv_general_dilated(
        x,
        parameters["each"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    return x.sum()


def test_channels_before_a_flattening_and_before_a_depthwise_convolution():
    images = normal(0, 2, 5, 5, 3)
    cases = [
        (flat, {"kernel": normal(1, 3, 3, 3, 4), "dense": normal(2, 100, 6)}, "['dense']", -2),
        (depthwise, {"kernel": normal(1, 3, 4), "each": normal(2, 3, 3, 1, 4)}, "['each']", -1),
    ]
    for function, parameters, second, axis in cases:
        parameters["bias"] = normal(3, 4)
        shifts = {"['kernel']": "['bias']", second: None}
        (pair,) = find_pairs(function, parameters, images, shifts)
        assert pair == Pair("['kernel']", second, "['bias']", None, -1, axis)
        better = equalise(function, parameters, images, [pair]).parameters
        assert relative(function(parameters, images), function(better, images)) < 1e-5


PERCEPTRON = {"a": normal(0, 4, 5), "s": normal(1, 5), "b": normal(2, 5, 3), "t": normal(3, 3)}
PAIR = Pair("['a']", "['b']", "['s']", "['t']")


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.relu6, jnp.tanh, lambda x: x + 1])
def test_what_is_not_homogeneous_is_refused(activation):
    def function(parameters: Any, x: Any) -> Any:
        z = activation(4 * (x @ parameters["a"] + parameters["s"]))
        return z @ parameters["b"] + parameters["t"]

    x = normal(4, 6, 4)
    with pytest.raises(ValueError, match="not positively homogeneous"):
        equalise(function, PERCEPTRON, x, [PAIR])
    assert find_pairs(function, PERCEPTRON, x, {"['a']": "['s']", "['b']": "['t']"}) == ()


def test_channels_that_also_go_elsewhere_are_refused():
    def function(parameters: Any, x: Any) -> Any:
        z = jax.nn.relu(x @ parameters["a"] + parameters["s"])
        return z @ parameters["b"] + z[:, :3]

    with pytest.raises(ValueError, match="the channels also go elsewhere"):
        equalise(function, PERCEPTRON, normal(4, 6, 4), [PAIR])


def test_no_factors_give_smaller_ranges():
    random = np.random.default_rng(0)
    for _ in range(50):
        first, second = np.exp(2 * random.normal(size=(2, 7)))
        least = np.max(first * second)
        best = equalising_factors(first, second)
        assert np.max(first * best) * np.max(second / best) == pytest.approx(least, rel=1e-12)
        other = np.exp(random.normal(size=7))
        assert np.max(first * other) * np.max(second / other) >= least * (1 - 1e-12)
    np.testing.assert_array_equal(equalising_factors(np.zeros(2), np.array([0.0, 1.0])), 1)


def rectifying(parameters: Any, x: Any) -> Any:
    z = jax.nn.relu(x @ parameters["a"] + parameters["s"])
    return z @ parameters["b"] + parameters["t"]


def test_high_means_are_absorbed():
    x = normal(4, 50, 4)
    z = np.asarray(x @ PERCEPTRON["a"])
    deviation = np.maximum(z.std(axis=0), np.abs(z).max(axis=0) / 3)  # none falls below
    shift = np.array([5.0, 4.0, 0.0, 6.0, 4.5]) * deviation - z.mean(axis=0)
    parameters = PERCEPTRON | {"s": jnp.asarray(shift, jnp.float32)}
    known = {"['s']": ChannelStatistics(shift + z.mean(axis=0), deviation)}
    found = absorb_high_means(parameters, [PAIR], known)
    live = [0, 1, 3, 4]
    after = found.statistics["['s']"]
    np.testing.assert_allclose(after.mean[live], 3 * deviation[live], rtol=1e-6)
    assert after.mean[2] == known["['s']"].mean[2]
    given = np.asarray(rectifying(found.parameters, x))
    assert relative(rectifying(parameters, x), given) < 0.05
    moved = np.asarray(parameters["s"] - found.parameters["s"])
    above = (z + shift - moved >= 0) | (moved == 0)
    rows = above.all(axis=1)
    assert rows.sum() > 10
    assert relative(rectifying(parameters, x)[rows], given[rows]) < 1e-5


def test_what_does_not_fit_is_refused():
    x = normal(4, 6, 4)

    def refused(reason: str, pair: Pair, **changed: Any) -> None:
        with pytest.raises(ValueError, match=reason):
            equalise(rectifying, PERCEPTRON | changed, x, [pair])

    refused(r"\['a'\] gives 5 channels, but \['b'\] is \(4, 3\)", PAIR, b=normal(0, 4, 3))
    refused(
        r"\['a'\] gives 5 channels, but \['t'\] has shape \(3,\)", Pair("['a']", "['b']", "['t']")
    )
    refused(r"no array at \['c'\]", Pair("['c']", "['b']"))
    refused("the `shift` is another one", Pair("['a']", "['b']"))
    with pytest.raises(ValueError, match="a positive number for each of the 5 channels"):
        rescaled(PERCEPTRON, [PAIR], [np.array([1.0, 2.0, -1.0, 1.0, 1.0])])
    with pytest.raises(ValueError, match=r"cannot be absorbed: the pair needs `shift`"):
        absorb_high_means(PERCEPTRON, [PAIR], {})
    with pytest.raises(ValueError, match=r"\['b'\] gives 3 outputs, but \['s'\] has shape"):
        absorb_high_means(PERCEPTRON, [Pair("['a']", "['b']", "['s']", "['s']")], {})
