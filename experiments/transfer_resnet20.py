"""ResNet-20 on CIFAR-10, compressed and certified.

python experiments/transfer_resnet20.py [--quick]
"""

from _transfer import draw as draw
from _transfer import study
from lowrank_theory.studies.ways import OTHERS

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED, ways=OTHERS)
