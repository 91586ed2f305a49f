"""ResNet-20 at a half of its parameters and less, distilled on unlabelled images of CIFAR-10.

The network's layers are replaced by factors that are fitted to what they see, and all factors then
learn from the network itself: Adam at a rate that falls to zero, on images that are mirrored and
moved. Nothing was chosen by looking at test images. An epoch is 50 batches of the 50,000 images;
after each, the state is written to out/distill_resnet20, and the script goes on there, to the same
bits. A step of 64 images takes half a second of one processor: 200 of them less than two minutes,
and eight passes over all images, EPOCHS = 125, fifty.

python experiments/distill_resnet20.py [--quick]
"""

from functools import partial
from typing import Any

from _distill_images import Lessons, decaying, draw, keys, main
from lowrank_theory.networks import resnet_network

SEED = 54
SHARES = (0.5, 0.25)
EPOCHS = 4


def measure(*, quick: bool) -> dict[str, Any]:
    lessons = Lessons.of("distill_resnet20", resnet_network(20), SEED, quick=quick)
    epochs, students, dense = 2 if quick else EPOCHS, {}, 0
    for share, key in zip(SHARES, keys(SEED, len(SHARES)), strict=True):
        student, dense = lessons.factored(share, epochs)
        found = lessons.taught(student, decaying, key=key)
        students[f"{share:.0%} of the parameters"] = {"share": share, **found}
    return lessons.numbers(dense, students)


if __name__ == "__main__":
    main(__file__, "ResNet-20", partial(resnet_network, 20), measure, draw, seed=SEED)
