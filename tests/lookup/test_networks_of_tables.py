"""Networks whose layers are tables: convolutions, files, certificates."""

import jax
import numpy as np
import pytest

from lowrank_theory import certify_losses, networks
from lowrank_theory.approximations import AbstractTable
from lowrank_theory.lookup import LookUp
from lowrank_theory.models.catalogue import available


@pytest.mark.slow
def test_a_convolution_is_compressed_saved_and_loaded(tmp_path):
    random = np.random.default_rng(9)
    images = random.standard_normal((24, 8, 8, 3)).astype(np.float32)
    images = images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)
    parameters = {"conv": random.standard_normal((3, 3, 3, 24)).astype(np.float32) / 5}

    def network(p, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=dimensions
        )

    batches = [images[:12], images[12:]]
    method = LookUp((2, 5))
    found = networks.compress(network, parameters, batches, networks.Bytes(0.99), method=method)
    taken = found.layers["['conv']"]
    assert taken.size == "5 codebooks"
    outputs, made = (
        np.concatenate([np.asarray(f(p, batch)) for batch in batches]).reshape(-1, 24)
        for f, p in ((network, parameters), (found.function, found.parameters))
    )
    error = np.linalg.norm(outputs - made) / np.linalg.norm(outputs)
    assert taken.relative_error == pytest.approx(error, rel=1e-4)
    found.save(tmp_path / "file")
    loaded = networks.load_compressed(tmp_path / "file", network, parameters)
    np.testing.assert_array_equal(
        loaded.function(loaded.parameters, images), found.function(found.parameters, images)
    )


@pytest.mark.slow
def test_tables_stand_in_all_convolutions_of_alexnet(tmp_path):
    """Layer after layer, to a certificate, and to a file and back."""
    missing = available("alexnet")
    if missing is not None:
        pytest.skip(missing.splitlines()[0])
    network, parameters = networks.alexnet_network()
    data = networks.cifar10_data(400)
    found = networks.compress(
        network.apply,
        parameters,
        [np.asarray(data.training_images[:16])],
        networks.LayerError(0.9),
        method=LookUp((8,), weighted=False),
        select=lambda path: "conv" in path,
        sequential=True,
    )
    tables = jax.tree.leaves(found.parameters, is_leaf=lambda x: isinstance(x, AbstractTable))
    tables = [table for table in tables if isinstance(table, AbstractTable)]
    assert len(tables) == 5 and all(layer.size for layer in found.layers.values())
    assert found.storage_bytes <= 0.1 * found.dense_storage_bytes

    units = [image[None] for image in data.training_images[-100:]]
    losses = networks.output_errors(network.apply, parameters, found, units)
    certified = certify_losses(losses, 0.05)
    assert certified.mean < certified.bound < 1
    layers = networks.unit_errors(network.apply, parameters, found, units[:3])
    assert sorted(layers) == sorted(found.layers) and all(np.all(x < 1) for x in layers.values())

    found.save(tmp_path / "file")
    loaded = networks.load_compressed(tmp_path / "file", network.apply, parameters)
    images = np.asarray(data.held_out_images[:50])
    once, again = (each.function(each.parameters, images) for each in (found, loaded))
    np.testing.assert_array_equal(once, again)
