"""ResNet-56 on CIFAR-10, with methods compared under four perspectives.

Fewer images than elsewhere are in the calibration, so that what its 57 layers see fits in memory.

python experiments/compare_resnet56.py [--quick]
"""

from _compare import draw as draw
from _compare import study
from lowrank_theory.networks import Sizes

SEED = 0
SIZES = Sizes(calibration=150, held_out=100, units=64, items=1_000, batch=50)

if __name__ == "__main__":
    study(__file__, seed=SEED, sizes=SIZES)
