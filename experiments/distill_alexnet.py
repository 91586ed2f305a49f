"""AlexNet's students on unlabelled images of CIFAR-10: its own factors, and a smaller AlexNet.

Factors learn as those of `distill_resnet20`. The smaller network, half as wide in every layer,
starts from random weights, is normalised over its batches and then folded, as in `train_alexnet`,
and follows Nesterov's momentum under one cycle of the rate. Interrupted, the script goes on where
it was, in out/distill_alexnet.

python experiments/distill_alexnet.py [--quick]
"""

import sys
from typing import Any

import jax
import optax

from _distill_images import (
    QUICK,
    Plan,
    Student,
    decaying,
    draw,
    keys,
    noise,
    numbers_of,
    on_factors,
    taught,
)
from _distill_note import write_tables
from _save import run
from _transfer import SKIPPED
from lowrank_theory.models.resnet import Cifar10
from lowrank_theory.networks import AlexNet, alexnet_network, cifar10_data
from train_alexnet import CHANNELS, CLASSES, WIDTHS, folded, initial_parameters, normalised_logits

SEED = 55
SHARES = (0.25, 0.1)
EPOCHS, EPOCHS_FROM_RANDOM = 3, 20
NORMALISED_BY = 2_000  # images whose statistics replace those of the batches


def logits(parameters: Any, images: Any) -> Any:
    """The network in training."""
    return normalised_logits(parameters, images)[0]


def half_as_wide(data: Cifar10, plan: Plan, epochs: int, *, key: Any) -> Student:
    channels = {name: width // 2 for name, width in CHANNELS.items()}
    widths = {name: width if width == CLASSES else width // 2 for name, width in WIDTHS.items()}
    parameters = initial_parameters(key=key, channels=channels, widths=widths)
    images = data.training_images[:NORMALISED_BY]
    count = sum(layer["kernel"].size for layer in parameters.values())

    def finished(parameters: Any) -> Any:
        return AlexNet().apply, folded(parameters, images, min(len(images), 8 * plan.batch))

    return Student((logits, parameters), count, epochs, 0.05, finished)


def one_cycle(rate: float, steps: int) -> optax.GradientTransformation:
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.25)
    return optax.sgd(cycle, 0.9, nesterov=True)


def measure(*, quick: bool) -> dict[str, Any]:
    plan, epochs = (QUICK, (2, 2)) if quick else (Plan(), (EPOCHS, EPOCHS_FROM_RANDOM))
    data = noise(SEED) if quick else cifar10_data()
    network, parameters = alexnet_network()
    teacher, students, dense = (network.apply, parameters), {}, 0
    name = "distill_alexnet_quick" if quick else "distill_alexnet"
    key_small, *own = keys(SEED, 1 + len(SHARES))
    for share, key in zip(SHARES, own, strict=True):
        student, dense = on_factors(teacher, data, plan, share, epochs[0])
        found = taught(teacher, student, data, plan, decaying, name=name, key=key)
        students[f"{share:.0%} of the parameters"] = {"share": share, **found}
    key_start, key = jax.random.split(key_small)
    student = half_as_wide(data, plan, epochs[1], key=key_start)
    found = taught(teacher, student, data, plan, one_cycle, name=name, key=key)
    students["half as wide"] = {"share": student.parameters / dense, **found}
    return numbers_of(teacher, dense, data, plan, students)


if __name__ == "__main__":
    try:
        cifar10_data(1)
    except FileNotFoundError as missing:
        print(f"AlexNet cannot be distilled: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_tables()
