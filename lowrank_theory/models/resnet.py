"""Residual networks, and the CIFAR-10 images on which they were trained.

Both are read from a folder of the user's, see `LAYOUT` and `CIFAR10_LAYOUT`. Of the first 1,000
test images the networks of 20 and 56 layers recognise 915 and 926.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8
from numpy.typing import ArrayLike

from lowrank_theory._numerics import AnyArray, check_count, settle
from lowrank_theory.data_constrained import natural_noise
from lowrank_theory.models._sources import Shapes, Source
from lowrank_theory.models.normalised import EPSILON, NORM, normalised

LAYOUT = """\
  {folder}/resnet20.npz, {folder}/resnet56.npz
    the state dicts pretrained_models/resnet20-12fca82f.th and resnet56-4bfd9763.th of
    github.com/akamaster/pytorch_resnet_cifar10 (BSD-2), saved with numpy.savez under their names
    without the leading "module.", and any other depth in the same way."""

CIFAR10_LAYOUT = """\
  cifar10/data_batch_1.bin to data_batch_5.bin, cifar10/test_batch.bin
    as they are in cifar-10-binary.tar.gz at https://www.cs.toronto.edu/~kriz/cifar.html
  or cifar10/cifar10_batch_0.png to cifar10_batch_50.png and cifar10/labels.npy
    the strips demo/cifar10/ of github.com/karpathy/convnetjs, 1,000 images each, and their 51,000
    labels as a NumPy array of bytes; the last strip is of test images."""

FOLDER = "resnet_cifar10"
_CIFAR10 = Source("cifar10", CIFAR10_LAYOUT)
_STAGES = (1, 2, 3)
_CLASSES = 10
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_RECORD = 1 + 3 * 32 * 32
_BATCH = 10_000
_STRIP = 1_000
_LARGEST_STRIP = 16_000_000  # bytes; those that there are have a fifth


class ResNet(eqx.Module):
    r"""The residual network of He, Zhang, Ren and Sun (2016, section 4.2) for images of 32 × 32.

    A convolution of window 3, then three stages of $(\text{depth} - 2)/6$ blocks

    $$x \leftarrow \max(c_2(\max(c_1(x), 0)) + s(x),\ 0)$$

    with more channels in each (theirs: 16, 32 and 64), then the mean over the places and an affine
    layer. The first block of the second and the third stage takes every second place, and its
    shortcut $s$ fills the new channels with zeros, half of them before the old ones ("option A");
    elsewhere $s(x) = x$.

    Batch normalisation, which is affine once a network is trained, is part of the convolution it
    follows: `kernel` (3, 3, inputs, outputs) and `bias` (outputs,). Where a layer has no `bias` but
    a `norm`, with `scale`, `shift`, `mean` and `variance` (outputs,), it is kept apart.

    Raises `ValueError` for a depth that is not 6 n + 2.
    """

    depth: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if settle(self, "depth", check_count, 8) % 6 != 2:
            raise ValueError(f"`depth` must be 6 n + 2, such as 20 or 56; got {self.depth}.")

    def apply(self, parameters: PyTree, images: AnyArray) -> Float[Array, "samples classes"]:
        """The logits of images (samples, 32, 32, 3) of bytes, the pixels from 0 to 255.

        Raises `ValueError` for images of another shape or dtype.
        """
        check_images(images)
        x = (jnp.asarray(images, jnp.float32) / 255 - _MEAN) / _DEVIATION
        x = jax.nn.relu(_convolved(parameters["stem"], x))
        for number, stage in enumerate(parameters["stages"]):
            for position, block in enumerate(stage):
                stride = 2 if number > 0 and position == 0 else 1
                inner = jax.nn.relu(_convolved(block["first"], x, stride))
                outer = _convolved(block["second"], inner)
                x = jax.nn.relu(outer + _shortcut(x, stride, outer.shape[-1]))
        head = parameters["head"]
        return x.mean(axis=(1, 2)) @ head["kernel"] + head["bias"]

    def noise(self, samples: int, *, key: PRNGKeyArray) -> UInt8[Array, "samples 32 32 3"]:
        """Noise in the place of images, about with the mean and the deviation by which `apply`
        normalises pixels.
        """
        pixels = 255 * (_MEAN + _DEVIATION * natural_noise(samples, 32, 32, 3, key=key))
        return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def check_images(images: AnyArray) -> None:
    """Images of CIFAR-10, or a `ValueError`."""
    if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(
            "`images` must be bytes of shape (samples, 32, 32, 3); got "
            f"{images.dtype} of shape {images.shape}."
        )


def _convolved(layer: PyTree, images: Array, stride: int = 1) -> Array:
    outputs = lax.conv_general_dilated(
        images,
        layer["kernel"],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return outputs + layer["bias"] if "bias" in layer else normalised(layer["norm"], outputs)


def _shortcut(images: Array, stride: int, channels: int) -> Array:
    zeros = (channels - images.shape[-1]) // 2
    return jnp.pad(images[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (zeros, zeros)))


def resnet_network(
    depth: int, folder: str | Path = FOLDER, *, folded: bool = True
) -> tuple[ResNet, dict[str, Any]]:
    """The trained network of so many layers in `resnet{depth}.npz` of a folder, below that named by
    `LOWRANK_DATA` or absolute, and its parameters, in float32.

    They are `{"stem": layer, "stages": [[{"first": layer, "second": layer}, ...], ...],
    "head": layer}`, where each layer is `{"kernel": ..., "bias": ...}`, of the widths in the file.
    Not `folded`, each but the head is `{"kernel": ..., "norm": {"scale": ..., "shift": ..., "mean":
    ..., "variance": ...}}`, as it was trained.

    Raises `FileNotFoundError` where the file is missing and `ValueError` where it is damaged, or
    its arrays do not fit together; both say which file, and where to get it.
    """
    network = ResNet(depth)
    source, name = Source(folder, LAYOUT.format(folder=folder)), f"resnet{depth}.npz"
    blocks = (depth - 2) // 6
    arrays = source.arrays(name, _expected(blocks, source.shapes(name)))

    def layer(prefix: str, number: int | str = 1) -> dict[str, Any]:
        norm = f"{prefix}bn{number}"
        variances = arrays[f"{norm}.running_var"].astype(np.float64)
        if not (variances >= 0).all():
            raise source.damaged(source.path(name), f"{norm}.running_var has negative entries")
        if not folded:
            kept = zip(NORM, ("weight", "bias", "running_mean", "running_var"), strict=True)
            return {
                "kernel": jnp.asarray(arrays[f"{prefix}conv{number}.weight"].transpose(2, 3, 1, 0)),
                "norm": {part: jnp.asarray(arrays[f"{norm}.{other}"]) for part, other in kept},
            }
        scale = arrays[f"{norm}.weight"] / np.sqrt(variances + EPSILON)
        kernel = arrays[f"{prefix}conv{number}.weight"].transpose(2, 3, 1, 0) * scale
        bias = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    stages = [
        [
            {"first": layer(f"layer{stage}.{k}.", 1), "second": layer(f"layer{stage}.{k}.", 2)}
            for k in range(blocks)
        ]
        for stage in _STAGES
    ]
    head = {
        "kernel": jnp.asarray(arrays["linear.weight"].T),
        "bias": jnp.asarray(arrays["linear.bias"]),
    }
    return network, {"stem": layer(""), "stages": stages, "head": head}


def _expected(blocks: int, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a network, whose widths are those found."""
    names = ("conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight", "linear.weight")
    *widths, classes = map(shapes.size, names)
    if any(new < old or (new - old) % 2 for old, new in itertools.pairwise(widths)):
        raise shapes.damaged(f"zeros cannot fill up shortcuts between stages of widths {widths}")
    expected: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, number: int, inputs: int, outputs: int) -> None:
        expected[f"{prefix}conv{number}.weight"] = (outputs, inputs, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{prefix}bn{number}.{part}"] = (outputs,)

    add("", 1, 3, widths[0])
    inputs = widths[0]
    for stage, outputs in zip(_STAGES, widths, strict=True):
        for block in range(blocks):
            add(f"layer{stage}.{block}.", 1, inputs, outputs)
            add(f"layer{stage}.{block}.", 2, outputs, outputs)
            inputs = outputs
    expected |= {"linear.weight": (classes, inputs), "linear.bias": (classes,)}
    others = [name for name in shapes.found.keys() - expected if "num_batches" not in name]
    if others:
        raise shapes.damaged(f"a network of {6 * blocks + 2} layers has no {min(others)}")
    return expected


# --- the images ----------------------------------------------------------------------------------


class Cifar10(eqx.Module):
    """Images of pixels from 0 to 255, and the numbers of their classes, in two parts.

    Whatever is fitted is fitted on training images, whatever is reported is measured on those held
    out, which are the test images of CIFAR-10.
    """

    training_images: UInt8[np.ndarray, "training 32 32 3"]
    training_labels: Int[np.ndarray, " training"]
    held_out_images: UInt8[np.ndarray, "held_out 32 32 3"]
    held_out_labels: Int[np.ndarray, " held_out"]


def cifar10_data(training: int = 5 * _BATCH) -> Cifar10:
    """The first `training` training images, and all test images that the files hold.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged; both
    say which, and where to get it.
    """
    training = check_count("training", training, 1, 5 * _BATCH)
    if _CIFAR10.path("labels.npy").is_file():
        fitted = _joined((_strip(k) for k in range(50)), training)
        held_out = _strip(50)
    else:
        fitted = _joined((_records(f"data_batch_{k}.bin", _BATCH) for k in range(1, 6)), training)
        held_out = _records("test_batch.bin", None)
    return Cifar10(*fitted, *held_out)


Labelled = tuple[np.ndarray, np.ndarray]


def _joined(parts: Iterator[Labelled], count: int) -> Labelled:
    """The first `count` images, reading no more parts than that takes."""
    taken: list[Labelled] = []
    while sum(len(labels) for _, labels in taken) < count:
        taken.append(next(parts))
    images, labels = map(np.concatenate, zip(*taken, strict=True))
    return images[:count], labels[:count]


def _records(name: str, count: int | None) -> Labelled:
    """A file of records: the label, then the red, the green and the blue pixels."""
    path = _CIFAR10.find(name)
    content = np.frombuffer(_CIFAR10.content(path, _BATCH * _RECORD), np.uint8)
    samples, rest = divmod(len(content), _RECORD)
    if rest or not samples or count not in (None, samples):
        expected = f"{count or 'some'} records of {_RECORD}"
        raise _CIFAR10.damaged(path, f"it has {len(content)} bytes, not {expected}")
    records = content.reshape(samples, _RECORD)
    images = records[:, 1:].reshape(samples, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, _labels(path, records[:, 0])


def _strip(number: int) -> Labelled:
    """A picture whose rows are images, beside its labels."""
    from PIL import Image

    path = _CIFAR10.find(f"cifar10_batch_{number}.png")
    content = _CIFAR10.content(path, _LARGEST_STRIP)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            shape = (*picture.size[::-1], len(picture.getbands()))
            # What is larger is not unpacked.
            pixels = np.asarray(picture.convert("RGB")) if shape[:2] == (_STRIP, 1024) else None
    except Exception as error:  # Pillow raises half a dozen kinds for a broken PNG
        raise _CIFAR10.damaged(path, error) from error
    if pixels is None:
        raise _CIFAR10.damaged(path, f"it has shape {shape}, not {(_STRIP, 1024, 3)}")
    labels_path, labels = _CIFAR10.array("labels.npy", (51 * _STRIP,))
    labels = labels[number * _STRIP : (number + 1) * _STRIP]
    return pixels.reshape(_STRIP, 32, 32, 3), _labels(labels_path, labels)


def _labels(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= _CLASSES:
        raise _CIFAR10.damaged(path, f"its labels are not integers from 0 to {_CLASSES - 1}")
    return labels.astype(np.int32)


def correct(
    function: Callable[[PyTree, Array], Array],
    parameters: PyTree,
    images: AnyArray,
    labels: ArrayLike,
    *,
    batch: int = 250,
) -> Bool[np.ndarray, " samples"]:
    """Which images have their largest logit, `function(parameters, images)`, at their label.

    The mean is the accuracy; the difference of two networks on the same images is paired.

    Raises `ValueError` where there is no image, or not one label for each.
    """
    expected = np.asarray(labels)
    if not len(images) or expected.shape != (len(images),):
        raise ValueError(
            f"`labels` must have shape ({len(images)},), one per image, and there must be some; "
            f"got {expected.shape}."
        )
    batch = check_count("batch", batch, 1)
    run = jax.jit(function)
    answers = [
        np.argmax(run(parameters, images[start : start + batch]), axis=-1)
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(answers) == expected
