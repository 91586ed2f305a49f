"""The six blocks of the classifier of AG News, with methods compared under four perspectives.

Fewer texts than elsewhere and no tables, so that it takes some twenty minutes of a processor.

python experiments/compare_ag_news.py [--quick]
"""

from _compare import draw as draw
from _compare import study
from lowrank_theory.networks import Sizes

SEED = 0
FAMILIES = ("low rank", "few bits", "few entries", "mixtures")
SIZES = Sizes(calibration=200, held_out=100, units=64, items=300, batch=50)

if __name__ == "__main__":
    study(__file__, seed=SEED, families=FAMILIES, sizes=SIZES)
