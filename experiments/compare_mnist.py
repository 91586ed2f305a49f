"""The perceptron on MNIST, with methods compared under four perspectives.

python experiments/compare_mnist.py [--quick]
"""

from _compare import draw as draw
from _compare import study

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED)
