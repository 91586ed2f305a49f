"""Every kind of approximation: what the laws are asked of. A new kind is entered here too.

`make(random, stack, inputs, outputs)` draws one in float32 whose numbers are small integers, halves
and powers of two, so that float32 holds every product of the laws without rounding.
"""

import numpy as np

from lowrank_theory import strategies

KINDS = dict(strategies.APPROXIMATIONS)
MATRICES = [kind for kind in KINDS if "shift" not in kind and "table" not in kind]


def numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-4, 5, shape).astype(np.float32)
