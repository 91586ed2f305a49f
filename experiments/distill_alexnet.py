"""AlexNet's students on unlabelled images of CIFAR-10: its own factors, and a smaller AlexNet.

Factors learn as those of `distill_resnet20`, at its rate and at a tenth of it. The smaller network,
half as wide in every layer, starts from random weights, is normalised over its batches and then
folded, as in `train_alexnet`, and follows Nesterov's momentum under one cycle of the rate.
Interrupted, the script goes on where it was, in out/distill_alexnet.

python experiments/distill_alexnet.py [--quick]
"""

from typing import Any

import jax
import optax

from _distill_images import Lessons, Student, decaying, draw, keys, main
from lowrank_theory.networks import AlexNet, alexnet_network
from train_alexnet import CHANNELS, CLASSES, WIDTHS, folded, initial_parameters, normalised_logits

SEED = 55
SHARES, RATES = (0.25, 0.1), (1e-3, 1e-4)
EPOCHS, EPOCHS_FROM_RANDOM = 3, 60
NORMALISED_BY = 2_000  # images whose statistics replace those of the batches


def logits(parameters: Any, images: Any) -> Any:
    """The network in training."""
    return normalised_logits(parameters, images)[0]


def half_as_wide(lessons: Lessons, epochs: int, *, key: Any) -> Student:
    channels = {name: width // 2 for name, width in CHANNELS.items()}
    widths = {name: width if width == CLASSES else width // 2 for name, width in WIDTHS.items()}
    parameters = initial_parameters(key=key, channels=channels, widths=widths)
    images = lessons.data.training_images[:NORMALISED_BY]
    count = sum(layer["kernel"].size for layer in parameters.values())

    def finished(parameters: Any) -> Any:
        return AlexNet().apply, folded(parameters, images, min(len(images), 8 * lessons.plan.batch))

    return Student((logits, parameters), count, epochs, 0.05, finished)


def one_cycle(rate: float, steps: int) -> optax.GradientTransformation:
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.25)
    return optax.sgd(cycle, 0.9, nesterov=True)


def measure(*, quick: bool) -> dict[str, Any]:
    lessons = Lessons.of("distill_alexnet", alexnet_network(), SEED, quick=quick)
    epochs, from_random = (2, 2) if quick else (EPOCHS, EPOCHS_FROM_RANDOM)
    students, dense = {}, 0
    key_small, *own = keys(SEED, 1 + len(SHARES))
    for share, key in zip(SHARES, own, strict=True):
        for rate in RATES:
            student, dense = lessons.factored(share, epochs, rate)
            found = lessons.taught(student, decaying, key=key)
            students[f"{share:.0%} of the parameters, rate {rate:g}"] = {"share": share, **found}
    key_start, key = jax.random.split(key_small)
    student = half_as_wide(lessons, from_random, key=key_start)
    found = lessons.taught(student, one_cycle, key=key)
    students["half as wide, random weights"] = {"share": student.parameters / dense, **found}
    return lessons.numbers(dense, students)


if __name__ == "__main__":
    main(__file__, "AlexNet", alexnet_network, measure, draw, seed=SEED)
