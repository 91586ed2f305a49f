"""ResNet-20 on CIFAR-10, with methods compared under four perspectives.

python experiments/compare_resnet20.py [--quick]
"""

from _compare import draw as draw
from _compare import study

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED)
