"""The residual networks compute what their definition says, and files that are no such say so."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lowrank_theory.data_constrained import folded
from lowrank_theory.models import resnet
from lowrank_theory.networks import batch_normalisations, observe

DEPTH = 8


def random_arrays(depth: int, widths: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    """A state dict of PyTorch, with the counts of batches that are no weights."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def add(prefix: str, number: int, inputs: int, outputs: int) -> None:
        kernel = random.normal(size=(outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        arrays[f"{prefix}conv{number}.weight"] = kernel
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = 0.3 * random.normal(size=outputs)
            arrays[f"{prefix}bn{number}.{part}"] = np.exp(values) if "var" in part else values

    add("", 1, 3, widths[0])
    inputs = widths[0]
    for stage, outputs in enumerate(widths, start=1):
        for block in range((depth - 2) // 6):
            add(f"layer{stage}.{block}.", 1, inputs, outputs)
            add(f"layer{stage}.{block}.", 2, outputs, outputs)
            inputs = outputs
    arrays["linear.weight"] = random.normal(size=(classes, inputs)) * np.sqrt(2 / inputs)
    arrays["linear.bias"] = 0.3 * random.normal(size=classes)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"bn1.num_batches_tracked": np.array(7)}


def write(folder: Path, depth: int, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"resnet{depth}.npz", allow_pickle=False, **arrays)
    return folder


@pytest.fixture
def arrays(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    stored = random_arrays(DEPTH, (16, 32, 64), 10)
    write(tmp_path / resnet.FOLDER, DEPTH, stored)
    return stored


def some_images(samples: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (samples, 32, 32, 3), np.uint8)


def expected_logits(arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The network as its authors wrote it, channels first, in float64."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = images.transpose(0, 3, 1, 2) / 255
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    x = (x - mean[:, None, None]) / deviation[:, None, None]

    def normalised_convolution(x: np.ndarray, prefix: str, number: int, stride: int) -> np.ndarray:
        kernel = arrays[f"{prefix}conv{number}.weight"]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        places = x.shape[-1] // stride
        y = np.zeros((len(x), len(kernel), places, places))
        for i, j in itertools.product(range(3), range(3)):
            seen = padded[:, :, i : i + x.shape[-1] : stride, j : j + x.shape[-1] : stride]
            y += np.einsum("oc,nchw->nohw", kernel[:, :, i, j], seen)
        of = {
            part: arrays[f"{prefix}bn{number}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        y = (y - of["running_mean"]) / np.sqrt(of["running_var"] + 1e-5)
        return y * of["weight"] + of["bias"]

    x = np.maximum(normalised_convolution(x, "", 1, 1), 0)
    blocks = sum(name.startswith("layer1.") and "conv1" in name for name in arrays)
    for stage, block in itertools.product((1, 2, 3), range(blocks)):
        stride = 2 if stage > 1 and block == 0 else 1
        prefix = f"layer{stage}.{block}."
        y = np.maximum(normalised_convolution(x, prefix, 1, stride), 0)
        y = normalised_convolution(y, prefix, 2, 1)
        if stride == 2:
            half = (y.shape[1] - x.shape[1]) // 2
            x = np.pad(x[:, :, ::2, ::2], ((0, 0), (half, half), (0, 0), (0, 0)))
        x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3)) @ arrays["linear.weight"].T + arrays["linear.bias"]


def test_logits_are_those_of_the_definition(arrays):
    network, parameters = resnet.resnet_network(DEPTH)
    images = some_images()
    expected = expected_logits(arrays, images)
    logits = network.apply(parameters, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * scale)
    labels = expected.argmax(axis=1)
    labels[1] = (labels[1] + 1) % 10
    found = resnet.correct(network.apply, parameters, images, labels, batch=2)
    np.testing.assert_array_equal(found, [True, False, True])


def test_normalisation_kept_apart_gives_the_same(arrays):
    network, parameters = resnet.resnet_network(DEPTH, folded=False)
    images = some_images()
    expected = expected_logits(arrays, images)
    scale = np.abs(expected).max()
    other = folded(parameters, batch_normalisations(parameters))
    for each in (parameters, other):
        logits = network.apply(each, images)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * scale)
    _, usual = resnet.resnet_network(DEPTH)
    first, second = (tree["stages"][1][0]["second"]["kernel"] for tree in (usual, other))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_noise_is_of_images():
    noise = resnet.ResNet(DEPTH).noise(20, key=jax.random.key(0))
    assert noise.shape == (20, 32, 32, 3) and noise.dtype == np.uint8
    means = np.asarray(noise, float).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.485, 0.456, 0.406], atol=0.05)


@pytest.mark.parametrize(
    ("depth", "widths", "classes"), [(32, (2, 4, 8), 3), (44, (2, 2, 6), 10), (8, (8, 16, 32), 100)]
)
def test_sizes_are_those_of_the_file(depth, widths, classes, tmp_path):
    arrays = random_arrays(depth, widths, classes)
    network, parameters = resnet.resnet_network(depth, write(tmp_path / "mine", depth, arrays))
    assert network.depth == depth
    assert [len(stage) for stage in parameters["stages"]] == [(depth - 2) // 6] * 3
    images = some_images(2)
    expected = expected_logits(arrays, images)
    logits = network.apply(parameters, images)
    assert logits.shape == (2, classes)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"layer1.0.conv1.weight": (4, 2, 3, 3)}, r"layer1\.0\.conv1\.weight has shape \(4, 2, 3"),
        ({"layer2.0.conv2.weight": (4, 2, 3, 3)}, r"layer2\.0\.conv2\.weight .*not \(4, 4, 3, 3\)"),
        ({"layer3.0.bn2.weight": (7,)}, r"layer3\.0\.bn2\.weight has shape \(7,\), not \(8,\)"),
        ({"linear.weight": (3, 4)}, r"linear\.weight has shape \(3, 4\), not \(3, 8\)"),
        ({"linear.weight": (0, 8)}, r"linear\.weight has shape \(0, 8\)"),
        ({"conv1.weight": ()}, r"conv1\.weight has shape \(\)"),
        ({"conv1.weight": (3, 3, 3, 3)}, r"zeros cannot fill up .* widths \[3, 4, 8\]"),
        (
            {"layer2.0.shortcut.0.weight": (4, 2, 1, 1)},
            r"a network of 8 layers has no layer2\.0\.shortcut",
        ),
        (
            {"layer1.1.conv1.weight": (2, 2, 3, 3)},
            r"a network of 8 layers has no layer1\.1\.conv1\.weight",
        ),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changed, reason, tmp_path):
    arrays = random_arrays(8, (2, 4, 8), 3)
    arrays |= {name: np.ones(shape, np.float32) for name, shape in changed.items()}
    folder = write(tmp_path / "mine", 8, arrays)
    with pytest.raises(ValueError, match=rf"resnet8\.npz is damaged or another file: {reason}"):
        resnet.resnet_network(8, folder)


def test_every_kernel_is_observed_and_every_bias_is_said_to_be_added(arrays):
    network, parameters = resnet.resnet_network(DEPTH)
    seen = observe(network.apply, parameters, [some_images(1)])
    assert len(seen) == DEPTH and all(path.endswith("['kernel']") for path in seen)
    assert len(seen.not_followed) == DEPTH
    assert set(seen.not_followed.values()) == {("it is added, not multiplied",)}


def test_what_is_no_image_is_refused(arrays):
    network, parameters = resnet.resnet_network(DEPTH)
    for images in (some_images() / 255.0, some_images()[:, :31]):
        with pytest.raises(ValueError, match=r"`images` must be bytes of shape \(samples, 32"):
            network.apply(parameters, images)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\).*got \(2,\)"):
        resnet.correct(network.apply, parameters, some_images(), np.zeros(2, int))
    with pytest.raises(ValueError, match="`depth` must be 6 n \\+ 2"):
        resnet.resnet_network(18)


# --- files ----------------------------------------------------------------------------------------


def test_without_the_folder_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    for load in (lambda: resnet.resnet_network(20), resnet.cifar10_data):
        with pytest.raises(FileNotFoundError, match=r"(?s)LOWRANK_DATA is not set.*must hold"):
            load()


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"(?s)resnet56\.npz is missing.*akamaster"):
        resnet.resnet_network(56)
    with pytest.raises(FileNotFoundError, match=r"(?s)data_batch_1\.bin is missing.*toronto"):
        resnet.cifar10_data()


def test_damaged_weights_are_refused(arrays, tmp_path):
    path = tmp_path / "resnet_cifar10" / f"resnet{DEPTH}.npz"
    content = path.read_bytes()
    for damaged in (b"", b"not a zip file", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"(?s)resnet8\.npz is damaged.*Get it again"):
            resnet.resnet_network(DEPTH)
    for changed, reason in (
        ({"linear.weight": np.zeros((64, 10), np.float32)}, r"linear\.weight has shape \(64, 10\)"),
        ({"linear.bias": np.full(10, np.nan, np.float32)}, r"linear\.bias has entries .* finite"),
        ({"linear.bias": np.zeros(10, int)}, r"linear\.bias is int64, not floating"),
        ({"bn1.running_var": np.full(16, -1, np.float32)}, r"running_var has negative entries"),
    ):
        np.savez(path, allow_pickle=False, **(arrays | changed))
        with pytest.raises(ValueError, match=reason):
            resnet.resnet_network(DEPTH)
    path.write_bytes(content)
    path.rename(path.with_name("resnet14.npz"))
    with pytest.raises(ValueError, match=r"resnet14\.npz is damaged or another file.*layer1\.1"):
        resnet.resnet_network(14)


def write_records(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    np.hstack([labels[:, None], planes]).astype(np.uint8).tofile(path)


def blocks_of_colour(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that compress well and differ, with a gradient down and another across."""
    number = np.arange(samples)
    image = np.zeros((samples, 32, 32, 3), np.uint8)
    image[..., 0] = number[:, None, None] % 251
    image[..., 1] = np.arange(32)[:, None]
    image[..., 2] = 2 * np.arange(32)
    return image, (number * 7 % 10).astype(np.uint8)


def test_both_kinds_of_files_hold_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    folder = tmp_path / "cifar10"
    folder.mkdir()
    images, labels = blocks_of_colour(10_000)
    write_records(folder / "data_batch_1.bin", images, labels)
    write_records(folder / "test_batch.bin", images[5_000:6_000], labels[5_000:6_000])
    records = resnet.cifar10_data(1_001)
    np.testing.assert_array_equal(records.training_images, images[:1_001])
    np.testing.assert_array_equal(records.training_labels, labels[:1_001])
    np.testing.assert_array_equal(records.held_out_images, images[5_000:6_000])

    for strip, first in ((0, 0), (1, 1_000), (50, 5_000)):
        pixels = images[first : first + 1_000].reshape(1_000, 1_024, 3)
        Image.fromarray(pixels).save(folder / f"cifar10_batch_{strip}.png")
    all_labels = np.zeros(51_000, np.uint8)
    all_labels[:10_000], all_labels[50_000:] = labels, labels[5_000:6_000]
    np.save(folder / "labels.npy", all_labels)
    strips = resnet.cifar10_data(1_001)
    for name in ("training_images", "training_labels", "held_out_images", "held_out_labels"):
        np.testing.assert_array_equal(getattr(strips, name), getattr(records, name))

    with pytest.raises(FileNotFoundError, match=r"cifar10_batch_2\.png is missing"):
        resnet.cifar10_data(2_001)
    picture = folder / "cifar10_batch_50.png"
    content = picture.read_bytes()
    for damaged in (b"", b"no picture", content[: len(content) // 2]):
        picture.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cifar10_batch_50\.png is damaged"):
            resnet.cifar10_data(1)
    Image.fromarray(images[0]).save(picture)
    with pytest.raises(ValueError, match=r"it has shape \(32, 32, 3\)"):
        resnet.cifar10_data(1)
    np.save(folder / "labels.npy", all_labels[:-1])
    with pytest.raises(ValueError, match=r"labels\.npy is damaged.*shape \(50999,\)"):
        resnet.cifar10_data(1)


def test_damaged_records_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    folder = tmp_path / "cifar10"
    folder.mkdir()
    images, labels = blocks_of_colour(2)
    for content in (b"", b"1234"):
        (folder / "data_batch_1.bin").write_bytes(content)
        with pytest.raises(ValueError, match=rf"it has {len(content)} bytes, not 10000 records"):
            resnet.cifar10_data(1)
    write_records(folder / "data_batch_1.bin", images, labels + 10)
    with pytest.raises(ValueError, match="it has 6146 bytes"):
        resnet.cifar10_data(1)
    write_records(folder / "test_batch.bin", images, labels + 10)
    with pytest.raises(ValueError, match="its labels are not integers from 0 to 9"):
        resnet._records("test_batch.bin", None)


# --- the trained networks -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "recognised"), [(20, 915), (56, 926)])
def test_check_figures(depth, recognised, data_folder):
    for needed in ("cifar10", "resnet_cifar10"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    network, parameters = resnet.resnet_network(depth)
    data = resnet.cifar10_data(1_000)
    images, labels = data.held_out_images[:1_000], data.held_out_labels[:1_000]
    found = resnet.correct(network.apply, parameters, jnp.asarray(images), labels)
    assert abs(int(found.sum()) - recognised) <= 1  # an image may stand at a tie, to rounding


@pytest.mark.slow
def test_the_training_images_have_their_means(data_folder):
    if not (data_folder / "cifar10").is_dir():
        pytest.skip(f"{data_folder} has no folder cifar10/")
    images = resnet.cifar10_data().training_images
    assert images.shape == (50_000, 32, 32, 3)
    means = images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
