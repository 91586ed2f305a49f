r"""Whether held-out units were seen before: rows of the calibration among them, and copies.

Rows may repeat by chance, as tokens, binary inputs and rows of few active entries do. How often,
the calibration itself says: the share of its rows that it has more than once is what a new row of
the same law has of being among them (Good 1953), and the share of its rows that repeat an earlier
one is no less than that of as many, or fewer, held-out units. More is refused: where the
hypergeometric test of both shares being equal has a p-value of at most `SIGNIFICANCE`. And where
the calibration repeats nothing, a single row is too much if chance hardly makes it twice: if its
distinct entries have `DISTINCTIVE_BITS` significant bits, as four float32 numbers do.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from lowrank_theory.calibration import RowSample

SIGNIFICANCE = 1e-6
DISTINCTIVE_BITS = 96


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What held-out units have in common with the calibration and with each other.

    - `copies`: how many units are equal to an earlier one, units of zeros apart;
    - `compared`: how many have rows whose hashes the calibration would have kept;
    - `seen`: how many of these have no other rows than the calibration.
    """

    copies: int
    compared: int
    seen: int


def check_unseen(
    units: Float[np.ndarray, "units rows inputs"], sample: RowSample | None, whose: str
) -> Overlap:
    """How many units were seen before, or a `ValueError` where these are more than chance gives.

    Without a sample nothing is compared but the units with each other, and nothing is refused.
    """
    rows = units.reshape(-1, units.shape[-1])
    hashes = RowSample.hashes_of(rows).reshape(units.shape[:2])
    hashed = hashes[hashes.any(axis=1)]
    copies = _copies(hashed)
    if sample is None:
        return Overlap(copies, 0, 0)
    comparable = hashes >= sample.least
    seen = comparable & np.isin(hashes, np.asarray(sample.hashes))
    comparable_of_units, counts = comparable.sum(axis=1), np.asarray(sample.counts)
    total, repeated = counts.sum(), counts[counts > 1].sum()
    compared, found = int(comparable.sum()), int(seen.sum())
    design_effect = _design_effect(seen.sum(axis=1), comparable_of_units, alike=copies > 0)
    scaled = (float(number) / design_effect for number in (found, compared, repeated, total))
    distinctive = repeated == 0 and any(map(_distinctive, rows[seen.ravel()]))
    if distinctive or _exceeds_chance(*scaled):
        raise ValueError(
            f"`held_out` has the very rows of `{whose}`: {found} of the {compared} that can be "
            f"compared, where chance gives about {compared * repeated / max(total, 1):.2g}. There "
            "the error is smaller than on new ones. Give rows that were held out of the "
            "calibration."
        )
    first = hashed[: int(total)]
    repeats = float(total - np.count_nonzero(counts))
    if _exceeds_chance(
        float(_copies(first)),
        float(len(first)),
        repeats / design_effect,
        float(total) / design_effect,
    ):
        raise ValueError(
            f"`held_out` has {copies} copies among its {len(units)} units, more than the rows of "
            f"`{whose}` let expect: copies are no independent draws. Give each unit once."
        )
    seen_units = (seen.sum(axis=1) == comparable_of_units) & (comparable_of_units > 0)
    return Overlap(copies, int(np.count_nonzero(comparable_of_units)), int(seen_units.sum()))


def _copies(hashes: np.ndarray) -> int:
    return len(hashes) - len(np.unique(hashes, axis=0))


def _design_effect(found: np.ndarray, of: np.ndarray, *, alike: bool) -> float:
    """The design effect: how many rows count as one, as rows of a unit depend on each other. By how
    much more than of independent rows the numbers found vary from unit to unit; all rows of a unit
    where units are alike.
    """
    total = max(int(of.sum()), 1)
    share, size = found.sum() / total, max(float(np.sum(of**2)) / total, 1.0)
    spread = float(np.sum((found - share * of) ** 2)) / max(total * share * (1 - share), 1.0)
    least = max(size / math.sqrt(np.count_nonzero(of) or 1), 1.0)  # few units tell little of it
    return size if alike else float(np.clip(spread, least, size))


def _exceeds_chance(found: float, of: float, expected: float, total: float) -> bool:
    """Whether `found` of some is a greater share than `expected` of the total."""
    drawn, hits = math.floor(of), math.floor(found)
    pooled = hits + math.ceil(expected)
    return (
        float(stats.hypergeom.sf(hits - 1, drawn + math.ceil(total), pooled, drawn)) <= SIGNIFICANCE
    )


def _distinctive(row: np.ndarray) -> bool:
    """Whether the distinct entries of a row hold so many bits that it is one of its kind."""
    fractions = np.unique(np.abs(np.frexp(row[row != 0])[0]))
    digits = np.rint(fractions * 2**24).astype(np.int64)
    last = np.log2(digits & -digits)
    return float(np.sum(24 - last)) >= DISTINCTIVE_BITS
