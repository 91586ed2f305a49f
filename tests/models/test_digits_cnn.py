"""The network of convolutions for digits computes what its definition says."""

import json

import jax
import numpy as np
import pytest

from lowrank_theory.models import digits_cnn
from lowrank_theory.networks import correct, digits_data, observe


def expected_logits(parameters: dict, images: np.ndarray) -> np.ndarray:
    """The network by its definition, in float64."""
    parameters = jax.tree.map(lambda array: np.asarray(array, np.float64), parameters)
    x = (np.asarray(images, np.float64).reshape(-1, 8, 8, 1) - 0.305) / 0.376
    for name in ("conv1", "conv2", "conv3", "conv4"):
        kernel, norm = parameters[name]["kernel"], parameters[name]["norm"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        places = range(0, x.shape[1], 2 if name == "conv3" else 1)
        products = np.stack(
            [
                np.stack(
                    [np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) for j in places], 1
                )
                for i in places
            ],
            1,
        )
        normal = (products - norm["mean"]) / np.sqrt(norm["variance"] + 1e-5)
        x = np.maximum(normal * norm["scale"] + norm["shift"], 0)
    return x.mean((1, 2)) @ parameters["head"]["kernel"] + parameters["head"]["bias"]


def test_logits_are_those_of_the_definition():
    network, parameters = digits_cnn.digits_cnn_network()
    images = np.asarray(digits_data().held_out_images[:3])
    expected = expected_logits(parameters, images)
    logits = jax.jit(network.apply)(parameters, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_kernel_is_observed():
    network, parameters = digits_cnn.digits_cnn_network()
    seen = observe(network.apply, parameters, [digits_data().training_images[:2]])
    assert set(seen) == {f"['{name}']['kernel']" for name in (*digits_cnn.CHANNELS, "head")}


def test_what_is_no_image_is_refused():
    network, parameters = digits_cnn.digits_cnn_network()
    for shape in ((2, 63), (64,), (2, 8, 8)):
        with pytest.raises(ValueError, match=r"`images` must have shape \(samples, 64\)"):
            network.apply(parameters, np.zeros(shape))


def test_noise_is_like_images():
    noise = np.asarray(digits_cnn.DigitsCNN().noise(300, key=jax.random.key(0)))
    images = np.asarray(digits_data().training_images)
    assert noise.shape == (300, 64)
    np.testing.assert_allclose(noise.mean(), images.mean(), atol=0.01)
    np.testing.assert_allclose(noise.std(), images.std(), atol=0.01)


def test_check_figure_and_description():
    description = digits_cnn.FILE.with_name("README.md").read_text()
    assert digits_cnn.SHA256 in description
    assert digits_cnn.FILE.stat().st_size <= 150e3
    with np.load(digits_cnn.FILE) as stored:
        metadata = json.loads(str(stored["metadata"]))
    assert f"{metadata['held_out_correct']} of the 597" in description
    network, parameters = digits_cnn.digits_cnn_network()
    data = digits_data()
    found = correct(network.apply, parameters, data.held_out_images, data.held_out_labels)
    assert abs(int(found.sum()) - metadata["held_out_correct"]) <= 1


def test_a_damaged_embedded_file_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "digits_cnn.npz"
    copy.write_bytes(digits_cnn.FILE.read_bytes()[:-1])
    monkeypatch.setattr(digits_cnn, "FILE", copy)
    with pytest.raises(ValueError, match=r"digits_cnn\.npz is damaged: its SHA-256 is .* Install"):
        digits_cnn.digits_cnn_network()
