"""What batch normalisation keeps is what the data had, and folding it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.data_constrained import BatchNormalisation, channel_statistics, folded
from lowrank_theory.models import digits_cnn
from lowrank_theory.models.normalised import normalised
from lowrank_theory.networks import (
    batch_normalisations,
    digits_cnn_network,
    digits_data,
    digits_network,
)


def test_statistics_are_those_of_the_training_data():
    """For the embedded network, whose statistics are of all training images at once."""
    _, parameters = digits_cnn_network()
    statistics = channel_statistics(parameters, batch_normalisations(parameters))
    seen = {}

    def recorded(name, products):
        seen[name] = normalised(parameters[name]["norm"], products)
        return seen[name]

    digits_cnn.logits(parameters, digits_data().training_images, recorded)
    assert len(statistics) == len(seen) == 4
    for name, normal in seen.items():
        known = statistics[f"['{name}']['norm']['shift']"]
        outputs = np.asarray(normal, np.float64)
        scale = np.max(known.deviation)
        np.testing.assert_allclose(outputs.mean((0, 1, 2)), known.mean, atol=1e-4 * scale)
        np.testing.assert_allclose(outputs.std((0, 1, 2)), known.deviation, atol=1e-4 * scale)


def test_folding_keeps_the_function():
    network, parameters = digits_cnn_network()
    other = folded(parameters, batch_normalisations(parameters))
    images = digits_data().held_out_images[:20]
    before, after = (np.asarray(network.apply(p, images)) for p in (parameters, other))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    norm = other["conv2"]["norm"]
    np.testing.assert_array_equal(norm["scale"], 1)
    np.testing.assert_array_equal(norm["mean"], 0)
    np.testing.assert_allclose(norm["variance"] + 1e-5, 1, rtol=1e-6)


def test_folding_twice_is_folding_once():
    random = np.random.default_rng(0)
    parameters = small(random)
    again = folded(folded(parameters, [NAMES]), [NAMES])
    for one, other in zip(
        jax.tree.leaves(folded(parameters, [NAMES])), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


NAMES = BatchNormalisation("['w']", "['b']", "['s']", "['m']", "['v']", epsilon=0.0)


def small(random: np.random.Generator) -> dict[str, jax.Array]:
    arrays = {"w": random.normal(size=(5, 3))} | {k: random.normal(size=3) for k in "bsm"}
    arrays["v"] = np.exp(random.normal(size=3))
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"v": -jnp.ones(3)}, r"\['v'\]` must not be negative; got -1"),
        ({"v": jnp.zeros(3)}, r"\['v'\]` has zeros, and `epsilon` is zero"),
        ({"m": jnp.ones(2)}, r"one number for each channel of \['b'\]; got \(2,\) beside \(3,\)"),
        ({"s": jnp.full(3, jnp.nan)}, r"\['s'\]` has entries that are not finite"),
        ({"w": jnp.ones((3, 5))}, r"its last axis must be that of the 3 channels"),
        ({"v": "text"}, r"no array at \['v'\]. Its arrays are: \['b'\]"),
    ],
)
def test_what_does_not_fit_is_refused(changed, reason):
    parameters = small(np.random.default_rng(0)) | changed
    with pytest.raises(ValueError, match=reason):
        folded(parameters, [NAMES])


@pytest.mark.parametrize("field", ["mean", "variance"])
def test_what_is_no_batch_normalisation_is_refused_with_the_reason(field):
    fields = {name: f"['{name}']" for name in ("kernel", "shift", "scale", "mean", "variance")}
    del fields[field]
    with pytest.raises(ValueError, match=rf"`{field}` must be .*got none\. Layer, group and inst"):
        BatchNormalisation(**fields)  # type: ignore[arg-type]


def test_nothing_named_and_nothing_found():
    parameters = small(np.random.default_rng(0))
    with pytest.raises(ValueError, match="`normalisations` is empty: name the leaves"):
        channel_statistics(parameters, [])
    with pytest.raises(ValueError, match=r"`parameters` have no `norm` beside a kernel"):
        batch_normalisations(digits_network())
