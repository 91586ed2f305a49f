"""ResNet-20 at a half of its parameters and less, distilled on unlabelled images of CIFAR-10.

The network's layers are replaced by factors that are fitted to what they see, and all factors then
learn from the network itself: Adam at a rate that falls to zero, on images that are mirrored and
moved. Nothing was chosen by looking at test images. An epoch is 50 batches of the 50,000 images;
after each, the state is written to out/distill_resnet20, and the script goes on there, to the same
bits. A step of 64 images takes half a second of one processor: 200 of them less than two minutes,
and eight passes over all images, EPOCHS = 125, fifty.

python experiments/distill_resnet20.py [--quick]
"""

import sys
from typing import Any

from _distill_images import QUICK, Plan, decaying, draw, keys, noise, numbers_of, on_factors, taught
from _distill_note import write_tables
from _save import run
from _transfer import SKIPPED
from lowrank_theory.networks import cifar10_data, resnet_network

SEED = 54
SHARES = (0.5, 0.25)
EPOCHS = 4


def measure(*, quick: bool) -> dict[str, Any]:
    plan, epochs = (QUICK, 2) if quick else (Plan(), EPOCHS)
    data = noise(SEED) if quick else cifar10_data()
    network, parameters = resnet_network(20)
    teacher, students, dense = (network.apply, parameters), {}, 0
    for share, key in zip(SHARES, keys(SEED, len(SHARES)), strict=True):
        student, dense = on_factors(teacher, data, plan, share, epochs)
        name = "distill_resnet20_quick" if quick else "distill_resnet20"
        found = taught(teacher, student, data, plan, decaying, name=name, key=key)
        students[f"{share:.0%} of the parameters"] = {"share": share, **found}
    return numbers_of(teacher, dense, data, plan, students)


if __name__ == "__main__":
    try:
        resnet_network(20)
        cifar10_data(1)
    except FileNotFoundError as missing:
        print(f"ResNet-20 cannot be distilled: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_tables()
