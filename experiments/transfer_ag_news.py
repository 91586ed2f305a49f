"""The six blocks of the classifier of AG News, compressed and certified.

python experiments/transfer_ag_news.py [--quick]
"""

from _transfer import draw as draw
from _transfer import study

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED)
