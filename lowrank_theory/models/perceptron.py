"""The multilayer perceptron, and the labelled images on which one is trained and judged."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_same
from lowrank_theory.approximations import LowRank


class Dataset(eqx.Module):
    """Labelled images, those on which a network was trained and those that it never saw.

    An image is a row of pixels scaled to [0, 1]; a label is the number of its class. Whatever is
    fitted (activations for calibration included) is fitted on the training rows, and whatever is
    reported is measured on the held-out ones.
    """

    training_images: Float[Array, "training pixels"]
    training_labels: Int[Array, " training"]
    held_out_images: Float[Array, "held_out pixels"]
    held_out_labels: Int[Array, " held_out"]


class Perceptron(eqx.Module):
    r"""Affine layers with a rectifier between each two.

    $$X_0 = \text{images}, \qquad X_{l+1} = \max(X_l W_l + \mathbf 1 b_l^\top,\ 0), \qquad
    \text{logits} = X_{L-1} W_{L-1} + \mathbf 1 b_{L-1}^\top .$$

    The weights $W_l$ are (inputs, outputs), dense or `LowRank` factors, which are never multiplied
    out; the biases $b_l$ are (outputs,).

    Raises `ValueError` for layers that do not fit one another, integer dtypes, empty or non-finite
    arrays.
    """

    weights: tuple[Float[Array | np.ndarray, "_inputs _outputs"] | LowRank, ...]
    biases: tuple[Float[Array | np.ndarray, " _outputs"], ...]

    def __init__(self, weights: Sequence[ArrayLike | LowRank], biases: Sequence[ArrayLike]) -> None:
        if not weights or len(weights) != len(biases):
            raise ValueError(
                "`weights` and `biases` must hold one entry per layer, and at least one; got "
                f"{len(weights)} weights and {len(biases)} biases."
            )
        self.weights = tuple(
            w if isinstance(w, LowRank) else check_array(f"weights[{i}]", w, "inputs", "outputs")
            for i, w in enumerate(weights)
        )
        self.biases = tuple(check_array(f"biases[{i}]", b, "outputs") for i, b in enumerate(biases))
        inputs = self.weights[0].shape[0]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = w.shape[-1]
            if w.shape != (inputs, outputs) or b.shape != (outputs,):
                raise ValueError(
                    f"Layer {i} must have weights ({inputs}, outputs) and a bias (outputs,); got "
                    f"{w.shape} and {b.shape}. Transpose weights kept as (outputs, inputs)."
                )
            inputs = outputs

    def layer_inputs(self, images: ArrayLike) -> tuple[Float[Array, "samples _inputs"], ...]:
        """What each layer sees, $(X_0, ..., X_{L-1})$, of (samples, pixels) images.

        Raises `ValueError` for images of another width, of integers, or with non-finite pixels.
        """
        pixels = jnp.asarray(check_array("images", images, "samples", "pixels"))
        check_same("images", pixels.shape[1], "weights[0]", self.weights[0].shape[0], "inputs")
        seen = [pixels]
        for weights, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            seen.append(jax.nn.relu(seen[-1] @ weights + bias))
        return tuple(seen)

    def __call__(self, images: ArrayLike) -> Float[Array, "samples classes"]:
        """The logits of (samples, pixels) images; it raises what `layer_inputs` raises."""
        return self.layer_inputs(images)[-1] @ self.weights[-1] + self.biases[-1]

    def accuracy(self, images: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
        """The fraction of the images whose largest logit is at their label.

        Raises `ValueError` where there is not one label per image, besides what `layer_inputs`
        raises.
        """
        logits, expected = self(images), jnp.asarray(labels)
        if expected.shape != logits.shape[:1]:
            raise ValueError(
                f"`labels` must have shape ({len(logits)},), one per image; got {expected.shape}."
            )
        return jnp.mean(jnp.argmax(logits, axis=-1) == expected)

    def with_layer(self, index: int, weights: ArrayLike | LowRank, bias: ArrayLike) -> "Perceptron":
        """The same network with the weights and bias of one layer replaced.

        Raises `ValueError` where there is no such layer or the replacement does not fit.
        """
        index = check_count("index", index, 0, len(self.weights) - 1)
        return Perceptron(
            (*self.weights[:index], weights, *self.weights[index + 1 :]),
            (*self.biases[:index], bias, *self.biases[index + 1 :]),
        )
