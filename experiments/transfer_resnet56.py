"""ResNet-56 on CIFAR-10, compressed and certified.

python experiments/transfer_resnet56.py [--quick]
"""

from _transfer import draw as draw
from _transfer import study

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED)
