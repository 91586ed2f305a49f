"""Laws of the errors of compressed networks on held-out units, against networks by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.networks import Compressed, output_errors, replace, survey, unit_errors
from routes import layer_of, normal

LENGTH, CHANNELS, WIDTH, CLASSES = 6, 4, 5, 3
KERNEL, STACK, HEAD = "['kernel']", "['stack']", "['head']"
PARAMETERS = {
    "kernel": normal(0, 3, CHANNELS, WIDTH),
    "stack": normal(1, 2, WIDTH, WIDTH) / 2,
    "head": normal(2, WIDTH, CLASSES),
    "bias": normal(3, CLASSES),
}
UNITS = list(normal(4, 5, 1, LENGTH, CHANNELS))


def network(parameters, batch):
    """A convolution, a loop over a stack, and an affine layer of the mean over the places."""
    numbers = ("NHC", "HIO", "NHC")
    x = lax.conv_general_dilated(
        batch, parameters["kernel"], (1,), "VALID", dimension_numbers=numbers
    )
    x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), jax.nn.relu(x), parameters["stack"])
    logits = x.mean(axis=1) @ parameters["head"] + parameters["bias"]
    return {"logits": logits, "places": x, "class": jnp.argmax(logits, axis=1)}


def truncated(weights: np.ndarray) -> LowRank:
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    return LowRank(left[..., :2] * values[..., None, :2], right[..., :2, :])


FACTORS = {
    KERNEL: Affine(truncated(PARAMETERS["kernel"].reshape(-1, WIDTH)), normal(5, WIDTH) / 9),
    STACK: Affine(truncated(PARAMETERS["stack"]), normal(6, 2, WIDTH) / 9),
    HEAD: truncated(PARAMETERS["head"]),
}


def on_factors(factors, function=network, parameters=PARAMETERS) -> Compressed:
    sites = survey(function, parameters, UNITS[0])
    layers = {
        path: layer_of(site.view, 2 if path in factors else None) for path, site in sites.items()
    }
    return Compressed(*replace(function, parameters, factors), layers, {})


@functools.cache
def compressed() -> Compressed:
    return on_factors(FACTORS)


# --- by hand -------------------------------------------------------------------------------------


def met(unit):
    """What each weight meets in the original network, slice by slice: (samples, inputs)."""
    weights = {name: np.asarray(leaf, float) for name, leaf in PARAMETERS.items()}
    (places,) = np.asarray(unit, float)
    patches = np.array([places[k : k + 3].ravel() for k in range(LENGTH - 2)])
    first = np.maximum(patches @ weights["kernel"].reshape(-1, WIDTH), 0)
    second = np.tanh(first @ weights["stack"][0])
    last = np.tanh(second @ weights["stack"][1])
    return {KERNEL: [patches], STACK: [first, second], HEAD: [last.mean(axis=0)[None]]}


def matrices(path):
    """Weights, product of the factors and shift of each slice."""
    given = FACTORS[path]
    factors: Any = given.approximation if isinstance(given, Affine) else given
    product = np.asarray(factors.left, float) @ np.asarray(factors.right, float)
    shift = np.asarray(given.shift, float) if isinstance(given, Affine) else np.zeros(CLASSES)
    if path == STACK:
        return list(zip(np.asarray(PARAMETERS["stack"], float), product, shift, strict=True))
    return [(np.asarray(PARAMETERS[path[2:-2]], float).reshape(product.shape), product, shift)]


def loss_by_hand(path, unit):
    error = norm = 0.0
    for rows, (weights, product, shift) in zip(met(unit)[path], matrices(path), strict=True):
        error += np.sum((rows @ weights - rows @ product - shift) ** 2)
        norm += np.sum((rows @ weights) ** 2)
    return min(1.0, error / norm)


def roundings(count: float) -> float:
    return count * float(np.finfo(np.float32).eps)


def test_layers_alone_by_hand():
    errors = unit_errors(network, PARAMETERS, compressed(), UNITS)
    assert set(errors) == set(FACTORS)
    for path, losses in errors.items():
        expected = [loss_by_hand(path, unit) for unit in UNITS]
        assert losses == pytest.approx(expected, rel=roundings(100))
    assert any(0 < loss < 1 for losses in errors.values() for loss in losses)


def test_whole_network_by_hand():
    small = compressed()
    losses = output_errors(network, PARAMETERS, small, UNITS)
    for loss, unit in zip(losses, UNITS, strict=True):
        original, other = network(PARAMETERS, unit), small.function(small.parameters, unit)
        error = norm = 0.0
        for name in ("logits", "places"):
            y, z = (np.asarray(outputs[name], float) for outputs in (original, other))
            error, norm = error + np.sum((y - z) ** 2), norm + np.sum(y**2)
        assert loss == pytest.approx(min(1.0, error / norm), rel=roundings(100))


def test_factors_that_are_the_weights_lose_nothing():
    whole = LowRank(PARAMETERS["head"], np.eye(CLASSES, dtype=np.float32))
    small = on_factors({HEAD: whole})
    errors = unit_errors(network, PARAMETERS, small, UNITS)
    assert list(errors) == [HEAD]
    assert errors[HEAD].tolist() == [0.0] * len(UNITS)
    losses = output_errors(network, PARAMETERS, small, UNITS)
    assert losses == pytest.approx(0, abs=roundings(10) ** 2)


def test_a_network_that_stayed_dense_has_no_layer_errors():
    assert unit_errors(network, PARAMETERS, on_factors({}), UNITS) == {}


def test_the_scale_of_the_outputs_does_not_matter():
    scaled = {**PARAMETERS, "head": PARAMETERS["head"] * 1e6, "bias": PARAMETERS["bias"] * 1e6}
    factors = {HEAD: LowRank(FACTORS[HEAD].left * 1e6, FACTORS[HEAD].right)}

    def logits(parameters, batch):
        return network(parameters, batch)["logits"]

    for errors in (output_errors, unit_errors):
        one = errors(logits, PARAMETERS, on_factors({HEAD: FACTORS[HEAD]}, logits), UNITS)
        other = errors(logits, scaled, on_factors(factors, logits, scaled), UNITS)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a == pytest.approx(b, rel=roundings(100))


def test_all_uses_of_a_weight_count_together():
    weights, rows = normal(12, WIDTH, WIDTH), normal(13, 2, WIDTH)

    def twice(parameters, batch):
        return jnp.tanh(batch @ parameters["w"]) @ parameters["w"]

    factors = truncated(weights)
    sites = survey(twice, {"w": weights}, rows)
    layer = layer_of(sites["['w']"].view, 2)
    small = Compressed(*replace(twice, {"w": weights}, {"['w']": factors}), {"['w']": layer}, {})
    (loss,) = unit_errors(twice, {"w": weights}, small, [rows])["['w']"]
    met_at_all = np.concatenate([rows, np.tanh(rows @ weights)]).astype(float)
    outputs, product = met_at_all @ weights, met_at_all @ factors.left @ factors.right
    expected = np.sum((outputs - product) ** 2) / np.sum(outputs**2)
    assert loss == pytest.approx(expected, rel=roundings(100))


def test_units_of_several_shapes_and_progress():
    longer = normal(11, 1, LENGTH + 2, CHANNELS)
    mixed, seen = [UNITS[0], longer, UNITS[1]], []

    def progress(done, total):
        seen.append((done, total))

    alone = unit_errors(network, PARAMETERS, compressed(), UNITS[:2])
    losses = unit_errors(network, PARAMETERS, compressed(), mixed, progress=progress)
    for path, values in losses.items():
        assert values[[0, 2]].tolist() == alone[path].tolist()
    whole = output_errors(network, PARAMETERS, compressed(), mixed, progress=progress)
    alone = output_errors(network, PARAMETERS, compressed(), UNITS[:2])
    assert whole[[0, 2]].tolist() == alone.tolist()
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_programs_are_compiled_once_for_a_shape():
    traced = []

    def counted(parameters, batch):
        traced.append(batch.shape)
        return network(parameters, batch)["logits"]

    small = on_factors({HEAD: FACTORS[HEAD]}, counted)
    for errors in (unit_errors, output_errors):
        traced.clear()
        errors(counted, PARAMETERS, small, UNITS)
        once = len(traced)
        traced.clear()
        errors(counted, PARAMETERS, small, UNITS[:1])
        assert len(traced) <= once and once > 0


# --- bad input -----------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("errors", [unit_errors, output_errors])
BROKEN = np.where(UNITS[1] > 1, np.nan, UNITS[1])


@BOTH
@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "`units` is empty"),
        ([UNITS[0], BROKEN], r"`units\[1\]` has entries that are NaN"),
        ([UNITS[0], UNITS[1] * np.inf], r"For `units\[1\]`, .* is not finite"),
        ([UNITS[0], UNITS[1][..., 0]], r"on a batch of \(1, 6\)|`units\[1\]` cannot be given"),
    ],
    ids=["none", "NaN", "infinite", "other shape"],
)
def test_refuses_units_that_are_none(errors, units, message):
    with pytest.raises(ValueError, match=message):
        errors(network, PARAMETERS, compressed(), units)


def test_refuses_another_function():
    def other(parameters, batch):
        return batch.mean(axis=(1, 2))[:, None] * jnp.ones(CLASSES)

    def rest(parameters, batch):
        return network({**parameters, "head": PARAMETERS["head"]}, batch)

    with pytest.raises(ValueError, match=r"does not multiply by \['head'\], which `compressed`"):
        unit_errors(rest, PARAMETERS, compressed(), UNITS)
    with pytest.raises(ValueError, match="must return floating-point arrays of the same shapes"):
        output_errors(other, PARAMETERS, compressed(), UNITS)


def test_refuses_outputs_without_numbers():
    def classes(parameters, batch):
        return network(parameters, batch)["class"]

    small = on_factors({HEAD: FACTORS[HEAD]}, classes)
    with pytest.raises(ValueError, match=r"floating-point arrays of the same shapes; got \[\]"):
        output_errors(classes, PARAMETERS, small, UNITS)
