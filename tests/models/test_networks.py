"""The networks are what their files say, and a file that is not says so."""

import gzip
import itertools
import json
import runpy
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.approximations import LowRank
from lowrank_theory.models import digits, mnist
from lowrank_theory.networks import (
    Perceptron,
    digits_data,
    digits_network,
    mnist_data,
    mnist_network,
)

WIDTHS = (5, 4, 3, 2)


def small_network(seed: int = 0) -> Perceptron:
    random = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(WIDTHS))
    return Perceptron(
        [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes],
        [jnp.asarray(random.normal(size=outputs), jnp.float32) for _, outputs in shapes],
    )


def small_images(samples: int = 7) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(samples, WIDTHS[0])).astype(np.float32)


# --- the perceptron ---------------------------------------------------------------------------


def test_logits_are_those_of_a_plain_loop():
    network, images = small_network(), small_images()
    x = images.astype(np.float64)
    for layer, (weights, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = x @ np.asarray(weights, np.float64) + np.asarray(bias, np.float64)
        x = x if layer == 2 else np.maximum(x, 0)
    np.testing.assert_allclose(network(images), x, rtol=1e-5, atol=1e-5)


def test_each_layer_maps_its_inputs_to_those_of_the_next():
    network, images = small_network(), small_images()
    seen = network.layer_inputs(images)
    assert [x.shape for x in seen] == [(7, 5), (7, 4), (7, 3)]
    np.testing.assert_array_equal(seen[0], images)
    outputs = [x @ w + b for x, w, b in zip(seen, network.weights, network.biases, strict=True)]
    np.testing.assert_array_equal(seen[1], jax.nn.relu(outputs[0]))
    np.testing.assert_array_equal(seen[2], jax.nn.relu(outputs[1]))
    np.testing.assert_array_equal(network(images), outputs[2])


def test_replacing_a_layer_leaves_the_others_and_the_original():
    network = small_network()
    weights, bias = jnp.ones((4, 3)), jnp.zeros(3)
    changed = network.with_layer(1, weights, bias)
    np.testing.assert_array_equal(changed.weights[1], weights)
    np.testing.assert_array_equal(changed.biases[1], bias)
    assert network.weights[1] is not weights
    for layer in (0, 2):
        np.testing.assert_array_equal(changed.weights[layer], network.weights[layer])
        np.testing.assert_array_equal(changed.biases[layer], network.biases[layer])


@pytest.mark.parametrize("layer", range(3))
def test_low_rank_factors_stand_for_weights(layer):
    network, images = small_network(), small_images()
    u, s, vt = np.linalg.svd(np.asarray(network.weights[layer]), full_matrices=False)
    factors = LowRank(jnp.asarray(u[:, :1] * s[:1]), jnp.asarray(vt[:1]))
    dense = network.with_layer(layer, factors.left @ factors.right, network.biases[layer])
    low_rank = network.with_layer(layer, factors, network.biases[layer])
    np.testing.assert_allclose(low_rank(images), dense(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        eqx.filter_jit(low_rank)(images), dense(images), rtol=1e-5, atol=1e-5
    )


def test_accuracy_counts():
    network, images = small_network(), small_images()
    answers = np.argmax(np.asarray(network(images)), axis=-1)
    assert float(network.accuracy(images, answers)) == 1
    assert float(network.accuracy(images, 1 - answers)) == 0
    answers[0] = 1 - answers[0]
    assert float(network.accuracy(images, answers)) == pytest.approx(6 / 7)


def test_layers_that_do_not_fit_are_refused():
    network, images = small_network(), small_images()
    with pytest.raises(ValueError, match=r"Layer 1 must have weights \(4, outputs\).*Transpose"):
        network.with_layer(1, network.weights[1].T, network.biases[1])
    with pytest.raises(ValueError, match=r"Layer 2 .* bias \(outputs,\); got \(3, 2\) and \(3,\)"):
        network.with_layer(2, network.weights[2], network.biases[1])
    with pytest.raises(ValueError, match="`index` must be an integer from 0 to 2; got 3"):
        network.with_layer(3, network.weights[2], network.biases[2])
    with pytest.raises(ValueError, match="got 3 weights and 2 biases"):
        Perceptron(network.weights, network.biases[:2])
    with pytest.raises(ValueError, match=r"`images` has 4 inputs, but `weights\[0\]` has 5"):
        network(images[:, :4])
    with pytest.raises(ValueError, match="`images` must be floating point; got dtype uint8"):
        network(images.astype(np.uint8))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(7,\).*got \(6,\)"):
        network.accuracy(images, np.zeros(6, np.int32))


# --- the embedded network -----------------------------------------------------------------------


def test_digits_are_classified_as_well_as_the_file_says():
    network, data = digits_network(), digits_data()
    assert [w.shape for w in network.weights] == [(64, 256), (256, 128), (128, 10)]
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype("float32")}
    with np.load(digits.FILE) as stored:
        claimed = json.loads(str(stored["metadata"]))
    for images, labels, samples, correct in (
        (data.training_images, data.training_labels, 1_200, claimed["training_correct"]),
        (data.held_out_images, data.held_out_labels, 597, claimed["held_out_correct"]),
    ):
        assert images.shape == (samples, 64) and labels.shape == (samples,)
        assert round(float(network.accuracy(images, labels)) * samples) == correct
    assert claimed["held_out_correct"] >= 0.97 * 597


def test_digits_are_scaled_and_rank_deficient():
    data = digits_data()
    assert float(data.training_images.min()) == 0 and float(data.training_images.max()) == 1
    assert np.linalg.matrix_rank(np.asarray(data.training_images)) < 64


def test_no_held_out_digit_is_a_training_digit():
    data = digits_data()
    training = {row.tobytes() for row in np.asarray(data.training_images)}
    assert not any(row.tobytes() in training for row in np.asarray(data.held_out_images))


def test_digits_are_those_of_scikit_learn():
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(digits.FILE) as stored:
        np.testing.assert_array_equal(stored["images"], bundled.data)
        np.testing.assert_array_equal(stored["labels"], bundled.target)


def test_the_embedded_file_is_small_and_its_readme_names_it():
    assert digits.FILE.stat().st_size < 1_000_000
    assert digits.SHA256 in digits.FILE.with_name("README.md").read_text()


@pytest.mark.parametrize("load", [digits_network, digits_data])
def test_a_damaged_embedded_file_is_refused(load, tmp_path, monkeypatch):
    content = bytearray(digits.FILE.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "digits.npz"
    for damaged in (content, content[:1_000], b""):
        copy.write_bytes(damaged)
        monkeypatch.setattr(digits, "FILE", copy)
        with pytest.raises(ValueError, match=r"digits\.npz is damaged: its SHA-256 is .* Install"):
            load()


@pytest.mark.slow
def test_training_reproduces_the_embedded_network(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("optax")
    script = Path(__file__).parents[2] / "experiments" / "train_digits.py"
    again = tmp_path / "digits.npz"
    monkeypatch.setattr(sys, "argv", [str(script), "--output", str(again)])
    runpy.run_path(str(script), run_name="__main__")
    with np.load(digits.FILE) as stored, np.load(again) as retrained:
        assert stored.files == retrained.files
        for name in set(stored.files) - {"metadata"}:
            # float64 training leaves the last float32 bit open, see the script
            np.testing.assert_allclose(retrained[name], stored[name], rtol=3e-7, atol=1e-11)
    assert list(tmp_path.iterdir()) == [again]


# --- the supplied network -----------------------------------------------------------------------


def test_mnist_check_figure(data_folder):
    for needed in ("mnist", "mnist_mlp"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    network, data = mnist_network(), mnist_data()
    assert data.training_images.shape == (60_000, 784)
    assert float(data.training_images.mean()) == pytest.approx(0.1307, abs=5e-5)
    correct = float(network.accuracy(data.held_out_images, data.held_out_labels)) * 10_000
    assert round(correct) == 9_831


@pytest.mark.parametrize("load", [mnist_network, mnist_data])
def test_mnist_without_its_folder_says_what_to_set(load, monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)LOWRANK_DATA is not set.*must hold.*https://"
    ):
        load()


@pytest.mark.parametrize(
    ("load", "missing"),
    [(mnist_network, "mnist_mlp.npz"), (mnist_data, "train-images-idx3-ubyte.gz")],
)
def test_mnist_missing_file_is_named(load, missing, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"(?s){missing} is missing.*github"):
        load()


def an_idx_file(*shape: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + pixels.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(an_idx_file(60_000, 28, 28), 1)[:-9],
        gzip.compress(an_idx_file(10, 28, 28)),
        gzip.compress(an_idx_file(60_000, 28, 28)[:-1], 1),
        gzip.compress(an_idx_file(60_000)),
    ],
    ids=["empty", "not gzip", "truncated", "too few", "short", "labels"],
)
def test_mnist_damaged_images_are_refused(content, tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(content)
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)train-images-idx3-ubyte\.gz is damaged.*https://"):
        mnist_data()


def write_mnist_network(path: Path, **changed: np.ndarray) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in mnist._shapes(500).items()}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, allow_pickle=False, **(arrays | changed))


def test_mnist_network_is_transposed_to_inputs_by_outputs(tmp_path, monkeypatch):
    weights = np.random.default_rng(0).normal(size=(500, 784)).astype(np.float32)
    write_mnist_network(tmp_path / "mnist_mlp" / "mnist_mlp.npz", **{"fc1.weight": weights})
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    np.testing.assert_array_equal(mnist_network().weights[0], weights.T)


def test_mnist_damaged_network_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mnist_mlp" / "mnist_mlp.npz"
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    write_mnist_network(path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", b"not a zip file", content[: len(content) // 2], flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"(?s)mnist_mlp\.npz is damaged.*github"):
            mnist_network()
    write_mnist_network(path, **{"fc2.weight": np.zeros((500, 10), np.float32)})
    with pytest.raises(ValueError, match=r"fc2.weight has shape \(500, 10\), not \(10, 500\)"):
        mnist_network()
