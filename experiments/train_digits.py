"""Train the perceptron that ships with the library on the digits that ship with scikit-learn.

    python experiments/train_digits.py [--output FILE]

An ordinary network trained in the ordinary way: 64-256-128-10 with rectifiers, He's
initialisation, cross-entropy and AdamW in minibatches, on 1,200 of the 1,797 images. Nothing asks
for low rank, and nothing was chosen by looking at the other 597.

Training runs in float64 and the weights are rounded to float32 at the end. Rounding differs from
machine to machine and training amplifies it: initial weights moved by 1e-15 of themselves end
3e-13 apart, in float32's 1e-7 they would end 3e-3 apart. So the same versions of JAX and optax
write the same file up to the last bit of a few weights, on any machine.
"""

import argparse
import hashlib
import io
import itertools
import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from sklearn.datasets import load_digits

from lowrank_theory.models.digits import BRIGHTEST, FILE
from lowrank_theory.networks import Perceptron

SEED = 0
TRAINING_ROWS = 1_200
WIDTHS = (64, 256, 128, 10)
EPOCHS = 60
BATCH = 100
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3


def initial_network(*, key: Array) -> Perceptron:
    """He's initialisation: weights of variance 2 / inputs, biases zero."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    shapes = list(itertools.pairwise(WIDTHS))
    weights = [
        jax.random.normal(k, (inputs, outputs), jnp.float64) * (2 / inputs) ** 0.5
        for k, (inputs, outputs) in zip(keys, shapes, strict=True)
    ]
    return Perceptron(weights, [jnp.zeros(outputs, jnp.float64) for _, outputs in shapes])


def train(
    images: Float[Array, "samples pixels"], labels: Int[Array, " samples"], *, key: Array
) -> Perceptron:
    """Minibatch AdamW on the mean cross-entropy, the rows shuffled anew in every epoch."""
    key_weights, key_batches = jax.random.split(key)
    network = initial_network(key=key_weights)
    optimiser = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss(network: Perceptron, rows: Int[Array, " batch"]) -> Float[Array, ""]:
        logits = network(images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry: tuple, rows: Int[Array, " batch"]) -> tuple:
        network, state = carry
        updates, state = optimiser.update(jax.grad(loss)(network, rows), state, network)
        return (eqx.apply_updates(network, updates), state), None

    epochs = jax.random.split(key_batches, EPOCHS)
    batches = jax.vmap(lambda k: jax.random.permutation(k, len(images)))(epochs)
    start = (network, optimiser.init(eqx.filter(network, eqx.is_array)))
    (network, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, batches.reshape(-1, BATCH)))(start)
    return network


def measure() -> dict[str, np.ndarray]:
    """The content of the file: the digits, which of them are training rows, the trained network."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels / BRIGHTEST
    key_split, key_training = jax.random.split(jax.random.key(SEED))
    training = np.zeros(len(labels), bool)
    training[jax.random.permutation(key_split, len(training))[:TRAINING_ROWS]] = True

    with jax.enable_x64(True):
        rows = jnp.asarray(images[training]), jnp.asarray(labels[training], jnp.int32)
        network = train(*rows, key=key_training)
    network = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), network)

    def correct(part: np.ndarray) -> int:
        return round(
            float(network.accuracy(images[part].astype(np.float32), labels[part])) * part.sum()
        )

    metadata = {
        "seed": SEED,
        "training_correct": correct(training),
        "held_out_correct": correct(~training),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
    }
    content = {"images": pixels.astype(np.uint8), "labels": labels.astype(np.uint8)}
    content["training"] = training
    for layer, (weights, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        content |= {f"weights_{layer}": weights, f"bias_{layer}": bias}
    return content | {"metadata": np.array(json.dumps(metadata))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded digits network.")
    parser.add_argument("--output", type=Path, default=FILE, help=f"default: {FILE}")
    output = parser.parse_args().output

    content = measure()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **content)
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    partial.write_bytes(buffer.getvalue())
    partial.replace(output)

    metadata = json.loads(str(content["metadata"]))
    rows = len(content["training"])
    for part, count in (("training", TRAINING_ROWS), ("held_out", rows - TRAINING_ROWS)):
        correct = metadata[f"{part}_correct"]
        print(f"{part:9}{correct} of {count} right ({correct / count:.1%})")
    print(f"sha256   {hashlib.sha256(buffer.getvalue()).hexdigest()}  {output}")


if __name__ == "__main__":
    main()
