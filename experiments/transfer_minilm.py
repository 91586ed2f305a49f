"""The six blocks of all-MiniLM-L6-v2, compressed and certified.

python experiments/transfer_minilm.py [--quick]
"""

from _transfer import draw as draw
from _transfer import study

SEED = 0

if __name__ == "__main__":
    study(__file__, seed=SEED)
