"""Train the AlexNet that ships with the library on the training images of CIFAR-10.

    python experiments/train_alexnet.py [--quick] [--output FILE]

An ordinary network trained in the ordinary way: batch normalisation, cross-entropy with smoothed
labels, Nesterov's momentum under one cycle of the learning rate, images mirrored and moved. Nothing
asks for low rank. The widths are such that one processor trains it in a quarter of an hour, the
rest are usual values, tried on nothing. The last 2,500 of the 50,000 training images are held out,
to watch the training by; the test images are looked at once, at the end.

After each epoch the state is written to out/train_alexnet: started again, the script goes on there,
and ends with the same bits as if it had never stopped. On another machine, or with other versions,
rounding differs and training amplifies it: a network of about the same accuracy comes out, but not
the same one. `--quick` trains on a few images of noise, to see whether all of it runs.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from _checkpoint import read, write
from lowrank_theory._files import write_atomically
from lowrank_theory.models import alexnet
from lowrank_theory.models.resnet import Cifar10, cifar10_data, correct

SEED = 0
CLASSES = 10
CHANNELS: dict[str, int] = dict(zip(alexnet.CONVOLUTIONS, (32, 64, 96, 96, 64), strict=True))
WINDOWS: dict[str, int] = dict(zip(alexnet.CONVOLUTIONS, (5, 3, 3, 3, 3), strict=True))
WIDTHS: dict[str, int] = dict(zip(alexnet.AFFINE, (512, 256, CLASSES), strict=True))
PLACES = 4 * 4  # where the last convolution ends
EPSILON = 1e-5  # added to the variances of the batch normalisation
STEPS_PER_LINE = 50


@dataclasses.dataclass(frozen=True)
class Plan:
    """All there is to choose; `held_out` are the last images of the training part."""

    training: int = 47_500
    held_out: int = 2_500
    epochs: int = 8
    batch: int = 125
    learning_rate: float = 0.1  # at its peak
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    shift: int = 2  # pixels, in each direction
    normalised_by: int = 5_000  # images whose statistics replace those of the batches

    @property
    def steps(self) -> int:
        return self.training // self.batch


QUICK = Plan(training=32, held_out=16, epochs=3, batch=8, normalised_by=16)


class State(NamedTuple):
    """What a run that was stopped goes on with."""

    parameters: PyTree
    optimiser: PyTree
    epochs: int
    seconds: float
    processor_seconds: float


# --- the network in training ---------------------------------------------------------------------


def initial_parameters(
    *,
    key: Array,
    channels: Mapping[str, int] = CHANNELS,
    widths: Mapping[str, int] = WIDTHS,
) -> dict[str, dict[str, Array]]:
    """He's initialisation: weights of variance 2 / inputs, biases zero."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for name, outputs in channels.items():
        shapes[name] = (WINDOWS[name], WINDOWS[name], inputs, outputs)
        inputs = outputs
    inputs *= PLACES
    for name, outputs in widths.items():
        shapes[name] = (inputs, outputs)
        inputs = outputs

    parameters = {}
    for (name, shape), k in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        deviation = (2 / math.prod(shape[:-1])) ** 0.5
        parameters[name] = {
            "kernel": deviation * jax.random.normal(k, shape, jnp.float32),
            "bias": jnp.zeros(shape[-1], jnp.float32),
        }
    return parameters


Moments = dict[str, tuple[Array, Array]]


def normalised_logits(
    parameters: PyTree, images: UInt8[Array, "batch 32 32 3"]
) -> tuple[Float[Array, "batch classes"], Moments]:
    """The logits, and the means and variances by which each layer was normalised over the batch."""
    moments: Moments = {}

    def normalised(name: str, products: Array) -> Array:
        axes = tuple(range(products.ndim - 1))
        mean = products.mean(axes)
        variance = jnp.square(products - mean).mean(axes)
        moments[name] = mean, variance
        normal = (products - mean) / jnp.sqrt(variance + EPSILON)
        return jax.nn.relu(normal + parameters[name]["bias"])

    return alexnet.logits(parameters, images, normalised), moments


def folded(parameters: PyTree, images: UInt8[np.ndarray, "samples 32 32 3"], batch: int) -> PyTree:
    """What `AlexNet` takes: normalisation by mean statistics over `images`, within the layers."""
    starts = range(0, len(images), batch)
    seen = [_moments(parameters, images[start : start + batch]) for start in starts]
    means = jax.tree.map(lambda *batches: np.mean(batches, axis=0), *seen)
    network = dict(parameters)
    for name, (mean, variance) in means.items():
        layer, deviation = parameters[name], np.sqrt(variance + EPSILON)
        network[name] = {
            "kernel": layer["kernel"] / deviation,
            "bias": layer["bias"] - mean / deviation,
        }
    return network


@jax.jit
def _moments(parameters: PyTree, images: Array) -> Moments:
    return normalised_logits(parameters, images)[1]


# --- training ------------------------------------------------------------------------------------


def augmented(
    images: UInt8[Array, "batch 32 32 3"], shift: int, *, key: Array
) -> UInt8[Array, "batch 32 32 3"]:
    """Each image mirrored or not, and moved by at most `shift` pixels, reflected at its border."""
    key_mirror, key_shift = jax.random.split(key)
    mirrored = jax.random.bernoulli(key_mirror, shape=(len(images), 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    border = (shift, shift)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), mode="reflect")
    corners = jax.random.randint(key_shift, (len(images), 2), 0, 2 * shift + 1)

    def part(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (32, 32, 3))

    return jax.vmap(part)(padded, corners)


def optimiser(plan: Plan) -> optax.GradientTransformation:
    """Nesterov's momentum and weight decay of the kernels; the rate rises, then falls to nought."""

    def kernels(parameters: PyTree) -> PyTree:
        return jax.tree.map(lambda array: array.ndim > 1, parameters)

    rate = optax.cosine_onecycle_schedule(
        plan.epochs * plan.steps, plan.learning_rate, pct_start=0.25
    )
    return optax.chain(
        optax.add_decayed_weights(plan.weight_decay, kernels),
        optax.sgd(rate, plan.momentum, nesterov=True),
    )


@functools.partial(jax.jit, static_argnames="plan", donate_argnums=(0, 1))
def step(
    parameters: PyTree, state: PyTree, images: Array, labels: Array, key: Array, *, plan: Plan
) -> tuple[PyTree, PyTree, Array]:
    """One step of the optimiser, and the loss before it."""
    images = augmented(images, plan.shift, key=key)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), plan.smoothing)

    def loss(parameters: PyTree) -> Array:
        return optax.softmax_cross_entropy(normalised_logits(parameters, images)[0], targets).mean()

    value, gradients = jax.value_and_grad(loss)(parameters)
    updates, state = optimiser(plan).update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, value


def train(
    images: UInt8[np.ndarray, "samples 32 32 3"],
    labels: Int[np.ndarray, " samples"],
    plan: Plan,
    checkpoint: Path,
    *,
    say: Callable[[str], None] = print,
) -> State:
    """Train from where `checkpoint` ends, which is written anew after each epoch."""
    key_start, key_epochs = jax.random.split(jax.random.key(SEED))
    parameters = initial_parameters(key=key_start)
    state = State(parameters, optimiser(plan).init(parameters), 0, 0.0, 0.0)
    if checkpoint.is_file():
        state = read(checkpoint, plan, like=state)
        say(f"going on after epoch {state.epochs} of {plan.epochs}")
    held_out = slice(plan.training, plan.training + plan.held_out)
    first, started = state.epochs, time.monotonic()

    def progress(done: float) -> None:
        left = (time.monotonic() - started) * (plan.epochs - done) / (done - first) / 60
        say(f"  {done:5.2f} of {plan.epochs} epochs, {left:.0f} min left")

    for epoch in range(first, plan.epochs):
        clock, processor = time.monotonic(), time.process_time()
        key_order, key_steps = jax.random.split(jax.random.fold_in(key_epochs, epoch))
        order = np.asarray(jax.random.permutation(key_order, plan.training))
        rows = order[: plan.steps * plan.batch].reshape(plan.steps, plan.batch)
        parameters, momentum = state.parameters, state.optimiser
        losses = []
        for number, (batch, key) in enumerate(
            zip(rows, jax.random.split(key_steps, plan.steps), strict=True), start=1
        ):
            parameters, momentum, loss = step(
                parameters, momentum, images[batch], labels[batch], key, plan=plan
            )
            losses.append(float(loss))
            if number % STEPS_PER_LINE == 0:
                progress(epoch + number / plan.steps)
        network = folded(parameters, images[: plan.normalised_by], plan.batch)
        share = recognised(network, images[held_out], labels[held_out]) / plan.held_out
        state = State(
            parameters,
            momentum,
            epoch + 1,
            state.seconds + time.monotonic() - clock,
            state.processor_seconds + time.process_time() - processor,
        )
        write(checkpoint, plan, state)
        say(
            f"epoch {epoch + 1} of {plan.epochs}: loss {np.mean(losses):.3f}, "
            f"{share:.1%} of the held-out images recognised"
        )
    return state


def recognised(network: PyTree, images: np.ndarray, labels: np.ndarray) -> int:
    return int(correct(alexnet.AlexNet().apply, network, images, labels).sum())


# --- the file ------------------------------------------------------------------------------------


def content(state: State, data: Cifar10, plan: Plan) -> dict[str, np.ndarray]:
    """The arrays of the file: the network in half precision, and how it came about."""
    network = folded(state.parameters, data.training_images[: plan.normalised_by], plan.batch)
    rounded = jax.tree.map(lambda array: np.asarray(array, np.float16), network)
    network = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), rounded)
    held_out = slice(plan.training, plan.training + plan.held_out)
    metadata: dict[str, Any] = {
        "seed": SEED,
        "plan": dataclasses.asdict(plan),
        "held_out_correct": recognised(
            network, data.training_images[held_out], data.training_labels[held_out]
        ),
        "test_correct": recognised(network, data.held_out_images, data.held_out_labels),
        "test_images": len(data.held_out_images),
        "minutes": round(state.seconds / 60, 1),
        "processor_minutes": round(state.processor_seconds / 60, 1),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
    }
    arrays = {
        f"{name}.{part}": array for name, layer in rounded.items() for part, array in layer.items()
    }
    return arrays | {"metadata": np.array(json.dumps(metadata))}


def noise(samples: int) -> Cifar10:
    """Images and labels without meaning."""
    random = np.random.default_rng(SEED)
    images = random.integers(0, 256, (samples, 32, 32, 3), np.uint8)
    labels = random.integers(0, CLASSES, samples, np.int32)
    return Cifar10(images, labels, images[:CLASSES], labels[:CLASSES])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded AlexNet.")
    parser.add_argument("--quick", action="store_true", help="a few steps; writes to out")
    parser.add_argument("--output", type=Path, help=f"default: {alexnet.FILE}")
    arguments = parser.parse_args()

    plan = QUICK if arguments.quick else Plan()
    samples = plan.training + plan.held_out
    data = noise(samples) if arguments.quick else cifar10_data(samples)
    name = "quick" if arguments.quick else "checkpoint"
    folder = Path(__file__).resolve().parents[1] / "out" / "train_alexnet"
    folder.mkdir(parents=True, exist_ok=True)
    output = arguments.output or (folder / "quick.npz" if arguments.quick else alexnet.FILE)

    say = functools.partial(print, flush=True)
    state = train(data.training_images, data.training_labels, plan, folder / f"{name}.eqx", say=say)
    arrays = content(state, data, plan)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(output, buffer.getvalue())

    metadata = json.loads(str(arrays["metadata"]))
    parts = (("held_out", plan.held_out), ("test", metadata["test_images"]))
    for part, count in parts:
        share = metadata[f"{part}_correct"] / count
        error = (share * (1 - share) / count) ** 0.5
        print(f"{part:9}{metadata[f'{part}_correct']} of {count} right ({share:.1%} ± {error:.1%})")
    print(f"time     {metadata['minutes']} min, {metadata['processor_minutes']} of processors")
    print(f"sha256   {hashlib.sha256(buffer.getvalue()).hexdigest()}  {output}")


if __name__ == "__main__":
    main()
