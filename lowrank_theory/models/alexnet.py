"""The embedded AlexNet: five convolutions and three affine layers, trained on CIFAR-10.

`experiments/train_alexnet.py` made the file from 47,500 of the training images that
`resnet.cifar10_data` reads. Of the first 1,000 test images it recognises 849.
"""

from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from lowrank_theory._numerics import AnyArray
from lowrank_theory.models._sources import embedded
from lowrank_theory.models.resnet import check_images

FILE = Path(__file__).with_name("data") / "alexnet.npz"
SHA256 = "addc36b4555f1bf0e5e6955f4fe7d0c198a3eaac08449a2f85ef96a26be50334"
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
AFFINE = ("affine1", "affine2", "affine3")
_POOLED = ("conv2", "conv5")
_STRIDE = 2  # of the first convolution


class AlexNet(eqx.Module):
    """The network of Krizhevsky, Sutskever and Hinton (2012), for images of 32 × 32.

    As theirs it has five convolutions, of which the first skips places, maxima over patches, and
    three affine layers; a rectifier follows each layer but the last. Their images are seven times
    as wide. Here the windows are 5, 3, 3, 3 and 3 wide (theirs 11, 5, 3, 3, 3) and the first takes
    every second place (theirs every fourth); maxima are over 2 × 2 places, without overlap, after
    the second and the fifth convolution (theirs also after the first); there are at most a third of
    their channels and an eighth of their widths, and neither two groups of channels nor dropout.

    In place of their normalisation across channels, batches were normalised in training, after each
    layer but the last. That is affine once a network is trained, and part of the layer it follows:
    `kernel` (window, window, inputs, outputs) or (inputs, outputs), and `bias` (outputs,).
    """

    def apply(self, parameters: PyTree, images: AnyArray) -> Float[Array, "samples classes"]:
        """The logits of images (samples, 32, 32, 3) of bytes, the pixels from 0 to 255.

        Raises `ValueError` for images of another shape or dtype.
        """
        check_images(images)

        def rectified(name: str, products: Array) -> Array:
            return jax.nn.relu(products + parameters[name]["bias"])

        return logits(parameters, images, rectified)


def logits(
    parameters: PyTree, images: AnyArray, activation: Callable[[str, Array], Array]
) -> Float[Array, "samples classes"]:
    """The network whose layers but the last give `activation(name, products)`.

    The products are of what came before with the kernel; where there are maxima they are taken
    first, which is the same for an activation that increases.
    """
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    for name in CONVOLUTIONS:
        x = _convolved(x, parameters[name]["kernel"], _STRIDE if name == "conv1" else 1)
        x = activation(name, _pooled(x) if name in _POOLED else x)
    x = x.reshape(len(x), -1)
    *hidden, last = AFFINE
    for name in hidden:
        x = activation(name, x @ parameters[name]["kernel"])
    return x @ parameters[last]["kernel"] + parameters[last]["bias"]


def _convolved(images: Array, kernel: Array, stride: int) -> Array:
    reach = len(kernel) // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((reach, reach), (reach, reach)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _pooled(images: Array) -> Array:
    """The largest of each 2 × 2 places."""
    samples, height, width, channels = images.shape
    return images.reshape(samples, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def alexnet_network() -> tuple[AlexNet, dict[str, dict[str, Array]]]:
    """The trained network and its parameters, in float32 (the file has them in float16).

    They are `{"conv1": layer, ..., "conv5": layer, "affine1": layer, ..., "affine3": layer}`, where
    each layer is `{"kernel": ..., "bias": ...}`.

    Raises `ValueError` where the embedded file is damaged.
    """
    stored = embedded(FILE, SHA256)
    parameters = {
        name: {
            part: jnp.asarray(stored[f"{name}.{part}"], jnp.float32) for part in ("kernel", "bias")
        }
        for name in (*CONVOLUTIONS, *AFFINE)
    }
    return AlexNet(), parameters
