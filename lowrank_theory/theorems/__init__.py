"""The theorems, in the order of a paper. Each file states one; each object here is one.

`CONTENTS` is the tuple of all. A theorem's fields are its statements:
`planted_rank.gaussian.bound(problem)`.
"""

from lowrank_theory.theorems._theorem import AbstractStatement as AbstractStatement
from lowrank_theory.theorems._theorem import AbstractTheorem as AbstractTheorem
from lowrank_theory.theorems._theorem import Bound as Bound
from lowrank_theory.theorems._theorem import Certainty as Certainty
from lowrank_theory.theorems._theorem import Direction as Direction
from lowrank_theory.theorems._theorem import Hypothesis as Hypothesis
from lowrank_theory.theorems._theorem import Kind as Kind
from lowrank_theory.theorems._theorem import Standing as Standing
from lowrank_theory.theorems.approximate_rank import approximate_rank as approximate_rank
from lowrank_theory.theorems.best_possible import best_possible as best_possible
from lowrank_theory.theorems.calibration_size import calibration_size as calibration_size
from lowrank_theory.theorems.planted_rank import planted_rank as planted_rank
from lowrank_theory.theorems.price_of_ignoring_data import (
    price_of_ignoring_data as price_of_ignoring_data,
)
from lowrank_theory.theorems.relu_noise_after import relu_noise_after as relu_noise_after

CONTENTS: tuple[AbstractTheorem, ...] = (
    best_possible,
    planted_rank,
    approximate_rank,
    relu_noise_after,
    price_of_ignoring_data,
    calibration_size,
)
