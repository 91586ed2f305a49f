"""AlexNet computes what its definition says, and its training can be stopped and gone on with."""

import dataclasses
import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.models import alexnet
from lowrank_theory.models.resnet import cifar10_data, correct
from lowrank_theory.networks import observe

ROOT = Path(__file__).parents[2]
CHANNELS = (2, 3, 4, 3, 2)


def small_parameters(seed: int = 0) -> dict[str, dict[str, jax.Array]]:
    random = np.random.default_rng(seed)
    shapes = {"conv1": (5, 5, 3, 2), "affine1": (32, 6), "affine2": (6, 5), "affine3": (5, 10)}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS), start=2):
        shapes[f"conv{number}"] = (3, 3, inputs, outputs)

    def normal(shape: tuple[int, ...], deviation: float) -> jax.Array:
        return jnp.asarray(random.normal(size=shape) * deviation, jnp.float32)

    return {
        name: {
            "kernel": normal(shape, (2 / math.prod(shape[:-1])) ** 0.5),
            "bias": normal(shape[-1:], 0.3),
        }
        for name, shape in shapes.items()
    }


def some_images(samples: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (samples, 32, 32, 3), np.uint8)


def expected_logits(parameters: dict, images: np.ndarray) -> np.ndarray:
    """The network by its definition, channels first, in float64."""
    parameters = jax.tree.map(lambda array: np.asarray(array, np.float64), parameters)
    x = images.transpose(0, 3, 1, 2) / 127.5 - 1
    for number in range(1, 6):
        layer = parameters[f"conv{number}"]
        window, places, stride = len(layer["kernel"]), x.shape[-1], 2 if number == 1 else 1
        padded = np.pad(x, ((0, 0), (0, 0), *2 * ((window // 2, window // 2),)))
        y = np.zeros((len(x), layer["kernel"].shape[-1], *2 * (places // stride,)))
        for i, j in itertools.product(range(window), repeat=2):
            seen = padded[:, :, i : i + places : stride, j : j + places : stride]
            y += np.einsum("co,nchw->nohw", layer["kernel"][i, j], seen)
        x = np.maximum(y + layer["bias"][:, None, None], 0)
        if number in (2, 5):
            corners = itertools.product((0, 1), repeat=2)
            x = np.max([x[:, :, i::2, j::2] for i, j in corners], axis=0)
    x = x.transpose(0, 2, 3, 1).reshape(len(x), -1)  # places, then channels
    for number in (1, 2, 3):
        layer = parameters[f"affine{number}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if number < 3 else x
    return x


@pytest.mark.parametrize("trained", [False, True])
def test_logits_are_those_of_the_definition(trained):
    parameters = alexnet.alexnet_network()[1] if trained else small_parameters()
    expected = expected_logits(parameters, some_images())
    logits = jax.jit(alexnet.AlexNet().apply)(parameters, some_images())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * scale)


def test_every_kernel_is_observed_and_every_bias_is_said_to_be_added():
    seen = observe(alexnet.AlexNet().apply, small_parameters(), [some_images(1)])
    kernels = {f"['{name}']['kernel']" for name in (*alexnet.CONVOLUTIONS, *alexnet.AFFINE)}
    assert set(seen) == kernels
    assert set(seen.not_followed.values()) == {("it is added, not multiplied",)}


def test_what_is_no_image_is_refused():
    for images in (some_images() / 255.0, some_images()[:, :31], some_images()[0]):
        with pytest.raises(ValueError, match=r"`images` must be bytes of shape \(samples, 32"):
            alexnet.AlexNet().apply(small_parameters(), images)


# --- the embedded file ----------------------------------------------------------------------------


def test_the_embedded_network_is_small_and_in_float32():
    _, parameters = alexnet.alexnet_network()
    assert list(parameters) == [*alexnet.CONVOLUTIONS, *alexnet.AFFINE]
    leaves = jax.tree.leaves(parameters)
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves)
    for layer in parameters.values():
        assert set(layer) == {"kernel", "bias"}
        assert layer["bias"].shape == layer["kernel"].shape[-1:]
    assert sum(leaf.size for leaf in leaves) == 873_418
    assert alexnet.FILE.stat().st_size <= 4e6


def test_the_embedded_file_is_described():
    description = alexnet.FILE.with_name("README.md").read_text()
    assert alexnet.SHA256 in description
    with np.load(alexnet.FILE) as stored:
        metadata = json.loads(str(stored["metadata"]))
    assert f"{metadata['held_out_correct']:,} of the 2,500" in description
    assert f"{metadata['test_correct']} of the first 1,000" in description


def test_a_damaged_embedded_file_is_refused(tmp_path, monkeypatch):
    content = bytearray(alexnet.FILE.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "alexnet.npz"
    monkeypatch.setattr(alexnet, "FILE", copy)
    for damaged in (content, content[:1_000], b""):
        copy.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"alexnet\.npz is damaged: its SHA-256 is .* Install"):
            alexnet.alexnet_network()


def test_check_figure(data_folder):
    if not (data_folder / "cifar10").is_dir():
        pytest.skip(f"{data_folder} has no folder cifar10/")
    network, parameters = alexnet.alexnet_network()
    data = cifar10_data(1)
    images, labels = data.held_out_images[:1_000], data.held_out_labels[:1_000]
    found = correct(network.apply, parameters, jnp.asarray(images), labels)
    assert abs(int(found.sum()) - 849) <= 1  # an image may stand at a tie, to rounding


# --- its training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, with so narrow a network that it compiles in a second or two."""
    file = ROOT / "experiments" / "train_alexnet.py"
    spec = importlib.util.spec_from_file_location("train_alexnet", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)  # as running it would
        spec.loader.exec_module(module)
    vars(module).update(
        CHANNELS=dict(zip(alexnet.CONVOLUTIONS, CHANNELS, strict=True)),
        WIDTHS=dict(zip(alexnet.AFFINE, (6, 5, 10), strict=True)),
    )
    return module


@pytest.mark.slow
def test_folding_normalises_by_the_moments_of_the_images(script):
    parameters = script.initial_parameters(key=jax.random.key(0))
    random = np.random.default_rng(2)
    parameters = jax.tree.map(  # biases as after training
        lambda array: array + np.float32(random.normal(size=array.shape) * 0.1), parameters
    )
    images = some_images(8)
    expected, _ = jax.jit(script.normalised_logits)(parameters, images)
    whole = script.folded(parameters, images, 8)
    logits = jax.jit(alexnet.AlexNet().apply)(whole, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    twice = script.folded(parameters, np.concatenate([images, images]), 8)
    jax.tree.map(np.testing.assert_array_equal, twice, whole)


def test_augmented_images_are_mirrored_and_moved(script):
    images = some_images(12)
    changed = np.asarray(script.augmented(images, 2, key=jax.random.key(0)))
    ways = set()
    for image, result in zip(images, changed, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        mirrored = padded[:, ::-1]
        found = [
            (way, i, j)
            for (way, whole) in enumerate((padded, mirrored))
            for i, j in itertools.product(range(5), repeat=2)
            if np.array_equal(whole[i : i + 32, j : j + 32], result)
        ]
        assert len(found) == 1
        ways |= set(found)
    assert len(ways) > 6 and {way for way, _, _ in ways} == {0, 1}
    again = script.augmented(images, 2, key=jax.random.key(0))
    np.testing.assert_array_equal(again, changed)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(script, tmp_path):
    plan = script.QUICK
    data = script.noise(plan.training + plan.held_out)
    arguments = data.training_images, data.training_labels, plan
    whole = script.train(*arguments, tmp_path / "whole", say=lambda line: None)

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script.train(*arguments, tmp_path / "stopped", say=stop)
    lines = []
    gone_on = script.train(*arguments, tmp_path / "stopped", say=lines.append)
    assert lines[0] == f"going on after epoch 2 of {plan.epochs}" and len(lines) == 2
    for name in ("parameters", "optimiser", "epochs"):
        jax.tree.map(np.testing.assert_array_equal, getattr(gone_on, name), getattr(whole, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]

    other = dataclasses.replace(plan, epochs=4)
    with pytest.raises(ValueError, match=r"another plan, .*'epochs': 3.* Move it away"):
        script.train(*arguments[:2], other, tmp_path / "whole")


def test_training_learns(script, tmp_path):
    """Images of one colour, which is their class."""
    plan = script.QUICK
    labels = np.arange(plan.training + plan.held_out) % 10
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    images[:] = (25 * labels)[:, None, None, None]
    losses = []
    script.train(images, labels, plan, tmp_path / "state", say=losses.append)
    first, *_, last = (float(line.split("loss ")[1].split(",")[0]) for line in losses)
    assert last < first


def test_a_quick_run_writes_what_the_library_reads(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "__file__", str(tmp_path / "experiments" / "train_alexnet.py"))
    for arguments in (["--quick"], ["--quick", "--output", str(tmp_path / "again.npz")]):
        monkeypatch.setattr(sys, "argv", ["train_alexnet.py", *arguments])
        script.main()
    said = capsys.readouterr().out
    written = tmp_path / "out" / "train_alexnet" / "quick.npz"
    digest = said.split("sha256")[1].split()[0]
    assert f"going on after epoch {script.QUICK.epochs}" in said
    assert written.read_bytes() == (tmp_path / "again.npz").read_bytes()

    monkeypatch.setattr(alexnet, "FILE", written)
    monkeypatch.setattr(alexnet, "SHA256", digest)
    network, parameters = alexnet.alexnet_network()
    assert network.apply(parameters, some_images()).shape == (2, 10)
    with np.load(written) as stored:
        assert {stored[name].dtype.name for name in stored.files if "." in name} == {"float16"}
        assert json.loads(str(stored["metadata"]))["plan"] == dataclasses.asdict(script.QUICK)
