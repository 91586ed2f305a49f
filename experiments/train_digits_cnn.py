"""Train the convolutional network that ships with the library on its handwritten digits.

    python experiments/train_digits_cnn.py [--output FILE]

An ordinary network trained in the ordinary way: batch normalisation, cross-entropy and AdamW in
minibatches, on the 1,200 training images of `digits_data`. Nothing was chosen by looking at the
other 597. After training, the statistics of the batches are replaced by those of all training
images at once: what the network then keeps of its data are a mean and a variance of each channel.

It takes about a minute of one processor. Training runs in float32 and amplifies rounding, so on
another machine a network of about the same accuracy comes out, but not the same one.
"""

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from lowrank_theory._files import write_atomically
from lowrank_theory.models import digits_cnn
from lowrank_theory.models.normalised import EPSILON
from lowrank_theory.networks import correct, digits_data

SEED = 0
EPOCHS = 30
BATCH = 60
LEARNING_RATE = 3e-3  # at first; it falls to nought along a cosine
WEIGHT_DECAY = 1e-3
SAMPLES = 1_200
OPTIMISER = optax.adamw(
    optax.cosine_decay_schedule(LEARNING_RATE, EPOCHS * SAMPLES // BATCH), weight_decay=WEIGHT_DECAY
)

Moments = dict[str, tuple[Array, Array]]


def normalised_logits(
    parameters: PyTree, images: Float[Array, "batch 64"]
) -> tuple[Float[Array, "batch classes"], Moments]:
    """The logits, and the means and variances by which each layer was normalised over the batch."""
    moments: Moments = {}

    def normalise(name: str, products: Array) -> Array:
        mean = products.mean((0, 1, 2))
        variance = jnp.square(products - mean).mean((0, 1, 2))
        moments[name] = mean, variance
        normal = (products - mean) / jnp.sqrt(variance + EPSILON)
        return normal * parameters[name]["scale"] + parameters[name]["shift"]

    return digits_cnn.logits(parameters, images, normalise), moments


@jax.jit
def step(
    parameters: PyTree, state: PyTree, images: Array, labels: Array
) -> tuple[PyTree, PyTree, Array]:
    """One step of the optimiser, and the loss before it."""

    def loss(parameters: PyTree) -> Array:
        logits, _ = normalised_logits(parameters, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(parameters)
    updates, state = OPTIMISER.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, value


def train(images: Float[Array, "samples 64"], labels: Int[Array, " samples"]) -> PyTree:
    """The parameters of `normalised_logits`, the rows shuffled anew in every epoch."""
    key_start, key_epochs = jax.random.split(jax.random.key(SEED))
    parameters = digits_cnn.initial_parameters(key=key_start)
    state, value = OPTIMISER.init(parameters), jnp.zeros(())
    for epoch, key in enumerate(jax.random.split(key_epochs, EPOCHS), start=1):
        for rows in jax.random.permutation(key, len(images)).reshape(-1, BATCH):
            parameters, state, value = step(parameters, state, images[rows], labels[rows])
        if epoch % 5 == 0:
            print(f"  {epoch} of {EPOCHS} epochs, loss {float(value):.4f}", flush=True)
    return parameters


def content() -> dict[str, np.ndarray]:
    """The arrays of the file: the network, and how it came about."""
    data = digits_data()
    parameters = train(data.training_images, data.training_labels)
    _, moments = jax.jit(normalised_logits)(parameters, data.training_images)
    arrays = {f"head.{part}": array for part, array in parameters["head"].items()}
    for name, (mean, variance) in moments.items():
        layer = parameters[name] | {"mean": mean, "variance": variance}
        arrays |= {f"{name}.{part}": array for part, array in layer.items()}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}

    network, trained = digits_cnn.DigitsCNN(), digits_cnn.parameters_of(arrays)
    metadata: dict[str, Any] = {
        "seed": SEED,
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
    }
    for part in ("training", "held_out"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        found = correct(network.apply, trained, images, labels, batch=len(images))
        metadata[f"{part}_correct"] = int(found.sum())
    return arrays | {"metadata": np.array(json.dumps(metadata))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded network of convolutions.")
    parser.add_argument("--output", type=Path, default=digits_cnn.FILE)
    output = parser.parse_args().output

    arrays = content()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(output, buffer.getvalue())

    metadata = json.loads(str(arrays["metadata"]))
    for part, count in (("training", SAMPLES), ("held_out", 597)):
        correct_ones = metadata[f"{part}_correct"]
        print(f"{part:9}{correct_ones} of {count} right ({correct_ones / count:.1%})")
    print(f"sha256   {hashlib.sha256(buffer.getvalue()).hexdigest()}  {output}")


if __name__ == "__main__":
    main()
