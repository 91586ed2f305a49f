"""Fine-tune all-MiniLM-L6-v2 to the topics of AG News: a classifier of the BERT family.

    python experiments/train_ag_news.py [--quick] [--output FILE]

An ordinary network fine-tuned in the ordinary way: cross-entropy and AdamW in minibatches, the rate
rising and then falling as a cosine, a larger one for the affine layer above the mean. Embeddings
stay as they are; layers and head are trained. Nothing asks for low rank. The last 200 of the 5,000
training texts are held out, to watch the training by; the test texts are looked at once, at the
end, beside a linear probe on the embeddings of the network as it was before.

Every 100 steps the state is written to out/ag_news_minilm: started again, the script goes on there,
and ends with the same bits as if it had never stopped. Weights are written to
out/ag_news_minilm/classifier.npz, the numbers to figures/train_ag_news.json. `--quick` takes a few
steps, to see whether all of it runs, and writes to out/figures.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from _checkpoint import read, write
from _save import interval, numbers_of
from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.models import news
from lowrank_theory.models.bert import Bert, Tokens, bert_network, bert_tokens, embed
from lowrank_theory.models.texts import ag_news_data, probe_correct

SEED = 0
BETWEEN = 100  # steps between two checkpoints
STEPS_PER_LINE = 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """All there is to choose; `held_out` are the last texts of the training part."""

    training: int = 4_800
    held_out: int = 200
    test: int = 7_600
    length: int = news.LENGTH
    epochs: int = 3
    batch: int = 32
    learning_rate: float = 5e-5  # of the layers, at its peak
    head_rate: float = 1e-3
    warm_up: float = 0.1  # share of the steps
    weight_decay: float = 0.01

    @property
    def steps(self) -> int:
        return self.epochs * (self.training // self.batch)


QUICK = Plan(training=16, held_out=8, test=8, length=8, epochs=3, batch=4)


class State(NamedTuple):
    """What a run that was stopped goes on with."""

    trained: PyTree
    optimiser: PyTree
    steps: int
    losses: Array  # of each step, zero for those to come
    seconds: float
    processor_seconds: float


def optimiser(plan: Plan) -> optax.GradientTransformation:
    """AdamW, each part at its rate."""

    def adamw(peak: float) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(
            0.0, peak, round(plan.warm_up * plan.steps), plan.steps
        )
        return optax.adamw(rate, weight_decay=plan.weight_decay)

    parts: dict[Any, Any] = {"layers": adamw(plan.learning_rate), "head": adamw(plan.head_rate)}
    return optax.multi_transform(parts, {name: name for name in parts})


@functools.partial(jax.jit, static_argnames=("encoder", "plan"), donate_argnums=(0, 1))
def step(
    trained: PyTree,
    state: PyTree,
    embeddings: PyTree,
    tokens: Tokens,
    labels: Array,
    *,
    encoder: Bert,
    plan: Plan,
) -> tuple[PyTree, PyTree, Array]:
    """One step of the optimiser, and the loss before it."""

    def loss(trained: PyTree) -> Array:
        logits = news.NewsNetwork(encoder).apply({"embeddings": embeddings, **trained}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(trained)
    updates, state = optimiser(plan).update(gradients, state, trained)
    return optax.apply_updates(trained, updates), state, value


def train(
    encoder: Bert,
    parameters: PyTree,
    tokens: Tokens,
    labels: Int[np.ndarray, " texts"],
    plan: Plan,
    checkpoint: Path,
    *,
    say: Callable[[str], None] = print,
) -> State:
    """Train from where `checkpoint` ends, which is written anew every `BETWEEN` steps and at the
    end.
    """
    trained = jax.tree.map(jnp.array, news.trained_part(parameters, news.head(parameters)))
    state = State(trained, optimiser(plan).init(trained), 0, jnp.zeros(plan.steps), 0.0, 0.0)
    if checkpoint.is_file():
        state = read(checkpoint, plan, like=state)
        say(f"going on after step {state.steps} of {plan.steps}")
    per_epoch = plan.training // plan.batch
    keys = jax.random.split(jax.random.key(SEED), plan.epochs)
    orders = [np.asarray(jax.random.permutation(key, plan.training)) for key in keys]
    batches = np.concatenate([order[: per_epoch * plan.batch] for order in orders])
    batches = batches.reshape(plan.steps, plan.batch)
    held_out = slice(plan.training, plan.training + plan.held_out)
    trained, moments, losses = state.trained, state.optimiser, np.array(state.losses)
    first = state.steps
    clock, processor = time.monotonic(), time.process_time()
    for done in range(first + 1, plan.steps + 1):
        rows = batches[done - 1]
        trained, moments, loss = step(
            trained,
            moments,
            parameters["embeddings"],
            Tokens(tokens.ids[rows], tokens.mask[rows]),
            labels[rows],
            encoder=encoder,
            plan=plan,
        )
        losses[done - 1] = loss
        seconds = time.monotonic() - clock
        if done % STEPS_PER_LINE == 0:
            left = seconds * (plan.steps - done) / (done - first) / 60
            recent = losses[max(done - STEPS_PER_LINE, 0) : done].mean()
            say(f"  step {done} of {plan.steps}: loss {recent:.3f}, {left:.0f} min left")
        if done % BETWEEN == 0 or done == plan.steps:
            state = State(
                trained,
                moments,
                done,
                jnp.asarray(losses),
                state.seconds + seconds,
                state.processor_seconds + time.process_time() - processor,
            )
            write(checkpoint, plan, state)
            clock, processor, first = time.monotonic(), time.process_time(), done
        if done % per_epoch == 0:
            right = recognised(
                encoder, {**parameters, **trained}, _part(tokens, held_out), labels[held_out]
            )
            say(f"epoch {done // per_epoch} of {plan.epochs}: {right.mean():.1%} of those held out")
    return state


def recognised(encoder: Bert, parameters: PyTree, tokens: Tokens, labels: np.ndarray) -> np.ndarray:
    """Which texts have their largest logit at their class."""
    logits = embed(news.NewsNetwork(encoder).apply, parameters, tokens)
    return np.argmax(logits, axis=1) == labels


def _part(tokens: Tokens, rows: slice) -> Tokens:
    return Tokens(tokens.ids[rows], tokens.mask[rows])


def weights(trained: PyTree) -> bytes:
    """The file of the weights, in half precision."""
    buffer = io.BytesIO()
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in news.by_name(trained).items()}
    np.savez(buffer, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def measured(
    encoder: Bert,
    parameters: PyTree,
    state: State,
    training: tuple[Tokens, np.ndarray],
    test: tuple[Tokens, np.ndarray],
    plan: Plan,
) -> dict[str, Any]:
    """The classifier as it is in the file and the probe, on the same test texts."""
    clock = time.process_time()
    rounded = jax.tree.map(lambda a: jnp.asarray(a, jnp.float16).astype(a.dtype), state.trained)
    network = {**parameters, **rounded}
    classifier = recognised(encoder, network, *test)
    fitted, held_out = (embed(encoder.apply, parameters, part[0]) for part in (training, test))
    probe = probe_correct(fitted, training[1], held_out, test[1])
    watched = slice(plan.training, plan.training + plan.held_out)
    return {
        "plan": dataclasses.asdict(plan),
        "steps": state.steps,
        "losses": [round(float(loss), 4) for loss in state.losses],
        "training_processor_seconds": round(state.processor_seconds, 1),
        "training_seconds": round(state.seconds, 1),
        "measuring_processor_seconds": round(time.process_time() - clock, 1),
        "held_out_accuracy": float(
            recognised(encoder, network, _part(training[0], watched), training[1][watched]).mean()
        ),
        "test_texts": len(test[1]),
        "accuracy": interval(classifier),
        "probe_accuracy": interval(probe),
        "difference": interval(classifier.astype(float) - probe),
        "optax": optax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the classifier of AG News.")
    parser.add_argument("--quick", action="store_true", help="a few steps; writes to out/figures")
    parser.add_argument("--output", type=Path, help=f"default: out/{news.FOLDER}/{news.FILE}")
    arguments = parser.parse_args()
    quick = arguments.quick

    plan, root = QUICK if quick else Plan(), Path(__file__).resolve().parents[1]
    folder = root / "out" / news.FOLDER
    figures = root / "out" / "figures" if quick else root / "figures"
    for each in (folder, figures):
        each.mkdir(parents=True, exist_ok=True)
    name = "quick" if quick else "checkpoint"
    output = arguments.output or folder / ("quick.npz" if quick else news.FILE)

    encoder, parameters = bert_network()
    data = ag_news_data()
    count = plan.training + plan.held_out
    training, test = (
        (bert_tokens(part.texts[:most], length=plan.length), part.labels[:most])
        for part, most in ((data.training, count), (data.test, plan.test))
    )
    say = functools.partial(print, flush=True)
    state = train(encoder, parameters, *training, plan, folder / f"{name}.eqx", say=say)
    content = weights(state.trained)
    write_atomically(output, content)
    found = numbers_of(
        lambda *, quick: measured(encoder, parameters, state, training, test, plan), SEED, quick
    )
    write_atomically(figures / "train_ag_news.json", to_json(found))
    for what in ("accuracy", "probe_accuracy", "difference"):
        value = found[what]
        say(f"{what:16}{value['mean']:.2%} ({value['low']:.2%} to {value['high']:.2%})")
    say(f"time            {found['training_processor_seconds']:.0f} s of processors in training")
    say(f"sha256          {hashlib.sha256(content).hexdigest()}  {output}")


if __name__ == "__main__":
    main()
