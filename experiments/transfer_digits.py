"""The perceptron on handwritten digits, compressed and certified.

python experiments/transfer_digits.py [--quick]
"""

from _transfer import draw as draw
from _transfer import study
from lowrank_theory.studies.ways import OTHERS

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED, ways=OTHERS)
