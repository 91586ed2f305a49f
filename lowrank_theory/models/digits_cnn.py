"""The embedded convolutional network for the handwritten digits of `digits_data`.

Its batch normalisation is kept apart, so that it shows what compression without data may know of a
network. `experiments/train_digits_cnn.py` made the file from the 1,200 training images.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lowrank_theory._numerics import AnyArray
from lowrank_theory.data_constrained import natural_noise
from lowrank_theory.models._sources import embedded
from lowrank_theory.models.normalised import NORM, normalised

FILE = Path(__file__).with_name("data") / "digits_cnn.npz"
SHA256 = "b8dd577f9ebbe19736eded34c4cafe92bc8130d92b345bb2b7ff38600f7662fc"
CHANNELS = {"conv1": 16, "conv2": 32, "conv3": 32, "conv4": 32}
STRIDED = "conv3"  # takes every second place
CLASSES = 10
MEAN, DEVIATION = 0.305, 0.376  # of the pixels of all training images


class DigitsCNN(eqx.Module):
    """Four convolutions with window 3 for images of 8 × 8, the mean over the places, and an affine
    layer.

    The convolutions have 16, 32, 32 and 32 outputs, and the third takes every second place. A batch
    normalisation and a rectifier follow each.
    """

    def apply(self, parameters: PyTree, images: AnyArray) -> Float[Array, "samples classes"]:
        """The logits of images (samples, 64), rows of pixels from 0 to 1.

        The parameters are `{"conv1": layer, ..., "conv4": layer, "head": {"kernel": ..., "bias":
        ...}}`, where each layer has a `kernel` (3, 3, inputs, outputs) and, in `norm`, `scale`,
        `shift`, `mean` and `variance` (outputs,). Raises `ValueError` for images of another shape.
        """
        return logits(parameters, images, lambda name, x: normalised(parameters[name]["norm"], x))

    def noise(self, samples: int, *, key: PRNGKeyArray) -> Float[Array, "samples 64"]:
        """Noise in the place of images, with the mean and the deviation of their pixels."""
        return MEAN + DEVIATION * natural_noise(samples, 8, 8, 1, key=key).reshape(samples, -1)


def logits(
    parameters: PyTree, images: AnyArray, normalise: Callable[[str, Array], Array]
) -> Float[Array, "samples classes"]:
    """The network whose convolutions are followed by `normalise(name, products)`."""
    if images.ndim != 2 or images.shape[1] != 64:
        raise ValueError(f"`images` must have shape (samples, 64); got {images.shape}.")
    x = (jnp.asarray(images, jnp.float32).reshape(-1, 8, 8, 1) - MEAN) / DEVIATION
    for name in CHANNELS:
        stride = 2 if name == STRIDED else 1
        products = lax.conv_general_dilated(
            x,
            parameters[name]["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(normalise(name, products))
    return x.mean(axis=(1, 2)) @ parameters["head"]["kernel"] + parameters["head"]["bias"]


def initial_parameters(*, key: PRNGKeyArray) -> dict[str, Any]:
    """He's initialisation: weights of variance 2 / inputs, shifts zero, scales one.

    For `logits`: each layer has its `scale` and `shift` beside its `kernel`, and no statistics.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 1
    for name, outputs in CHANNELS.items():
        shapes[name] = (3, 3, inputs, outputs)
        inputs = outputs
    shapes["head"] = (inputs, CLASSES)
    parameters: dict[str, Any] = {}
    for (name, shape), k in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        deviation = (2 / math.prod(shape[:-1])) ** 0.5
        outputs = shape[-1]
        parameters[name] = {"kernel": deviation * jax.random.normal(k, shape)}
        if name == "head":
            parameters[name]["bias"] = jnp.zeros(outputs)
        else:
            parameters[name] |= {"scale": jnp.ones(outputs), "shift": jnp.zeros(outputs)}
    return parameters


def digits_cnn_network() -> tuple[DigitsCNN, dict[str, Any]]:
    """The trained network and its parameters, in float32.

    Raises `ValueError` where the embedded file is damaged.
    """
    return DigitsCNN(), parameters_of(embedded(FILE, SHA256))


def parameters_of(stored: Mapping[str, AnyArray]) -> dict[str, Any]:
    """The parameters in the arrays of the file."""
    parameters: dict[str, Any] = {
        name: {
            "kernel": jnp.asarray(stored[f"{name}.kernel"]),
            "norm": {part: jnp.asarray(stored[f"{name}.{part}"]) for part in NORM},
        }
        for name in CHANNELS
    }
    head = {part: jnp.asarray(stored[f"head.{part}"]) for part in ("kernel", "bias")}
    return parameters | {"head": head}
