r"""Look-up products as a method with sizes: numbers of codebooks.

The parts are those of MADDNESS (Blalock and Guttag 2021): trees, ridge entries over all codebooks,
bytes; orders of the inputs, and entries behind a nonlinearity, are those of McCarter and Dronen
(2022). Trees that know the weights
and steps for each output are ours.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_positive,
    check_same,
    settle,
    settle_each,
)
from lowrank_theory.approximations import RoundedTable, Table
from lowrank_theory.lookup.bytes_of_tables import in_bytes
from lowrank_theory.lookup.entries import bucket_means, ridge_entries
from lowrank_theory.lookup.nonlinear import AbstractNonlinearity, nonlinear_entries
from lowrank_theory.lookup.orders import AbstractOrder, AsTheyCome, subspaces
from lowrank_theory.lookup.trees import grown
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, rows_of, trained_weights


class LookUp(AbstractLadder):
    """Look-up tables of several numbers of `codebooks`, each with a tree of so many `levels`.

    - `order` of the inputs, whose successive parts are the subspaces of the codebooks: as they come
      (pixels and channels lie beside those that they tell of), `Correlated` or `Rotated`;
    - `weighted`: trees look at what becomes of the outputs, not of the inputs;
    - `candidates`: how many inputs are tried at each level;
    - `ridge`: the penalty of entries away from bucket means, in rows;
    - `through`: what outputs go through before they are judged, such as `Rectified(bias)` or
      `Softmax(bias)`; if nothing, entries have a closed form;
    - `rounded`: entries are bytes, with a step for each output.

    More codebooks than inputs are no size of the layer. Entries are fitted to the outputs of the
    original layer, codes to the inputs that the table will see.
    """

    codebooks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    levels: int = 4
    order: AbstractOrder = AsTheyCome()
    weighted: bool = True
    candidates: int = 4
    ridge: float = 1.0
    through: AbstractNonlinearity | None = None
    rounded: bool = True

    def __check_init__(self) -> None:
        settle_each(self, "codebooks", check_count, 1)
        settle(self, "levels", check_count, 1, 8)
        settle(self, "candidates", check_count, 1)
        settle(self, "ridge", check_positive, zero=True)
        if not isinstance(self.order, AbstractOrder):
            raise ValueError(
                f"`order` must be one such as `AsTheyCome()` or `Correlated()`; got {self.order!r}."
            )
        if not (self.through is None or isinstance(self.through, AbstractNonlinearity)):
            raise ValueError(
                f"`through` must be one such as `Rectified()` or `Softmax()`; got {self.through!r}."
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Rows."""
        return frozenset({Need.ROWS})

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each number of codebooks up to that of the inputs. Raises `ValueError`
        without weights, or where no rows are known.
        """
        weights: Any = trained_weights(self, observed)
        if observed.activations is None and observed.calibration is None:
            raise ValueError(
                "`LookUp` needs what the layer sees: give `Observed(activations=...)`, or a "
                "calibration that keeps rows."
            )
        rows = rows_of(observed)
        original = None if rows.original is rows.layer else rows.original
        order = self.order.of(rows.layer, rows.counts)
        sizes = [
            (
                f"{count} codebook{'s' * (count > 1)}",
                _made(self, rows.layer, weights, original, rows.counts, order, count),
            )
            for count in self.codebooks
            if count <= len(order)
        ]
        return Sweep.of(self, observed, sizes)


def look_up(
    rows: ArrayLike,
    weights: ArrayLike,
    codebooks: int,
    *,
    original: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    method: LookUp | None = None,
) -> Table | RoundedTable:
    """The pure function beneath `LookUp`: a table of so many codebooks, for `rows` (samples,
    inputs) that it sees and `weights` (inputs, outputs), in their dtype.

    `original` are the rows of the original network, where they are others, `counts` how often each
    row came, and `method` says all the rest. On the host, in NumPy, and so not under `jit`. Raises
    `ValueError` for what are no finite arrays of floats that fit.
    """
    method = LookUp() if method is None else method
    given: Any = check_array("weights", weights, "inputs", "outputs")
    seen = np.asarray(check_array("rows", rows, "samples", "inputs"), np.float64)
    check_same("rows", seen.shape[1], "weights", given.shape[0], "inputs")
    before, often = None, np.ones(len(seen))
    if original is not None:
        before = np.asarray(check_array("original", original, "samples", "inputs"), np.float64)
        check_same("original", before.shape[0], "rows", len(seen), "samples")
        check_same("original", before.shape[1], "rows", seen.shape[1], "inputs")
    if counts is not None:
        often = np.asarray(check_array("counts", counts, "samples"), np.float64)
        check_same("counts", len(often), "rows", len(seen), "samples")
    codebooks = check_count("codebooks", codebooks, 1, seen.shape[1], ", one input for each")
    order = method.order.of(seen, often)
    return _made(method, seen, given, before, often, order, codebooks)


def _made(
    method: LookUp,
    rows: np.ndarray,
    weights: Any,
    original: np.ndarray | None,
    counts: np.ndarray,
    order: np.ndarray,
    codebooks: int,
) -> Table | RoundedTable:
    dtype = weights.dtype
    wide = np.asarray(weights).astype(np.float64)
    parts = subspaces(order, codebooks)
    trees = grown(
        rows,
        parts,
        counts=counts,
        weights=wide if method.weighted else None,
        levels=method.levels,
        candidates=method.candidates,
        dtype=dtype,
    )
    anchor = bucket_means(trees.codes, rows, parts, 2**method.levels, counts) @ wide
    wanted = (rows if original is None else original) @ wide
    options: Any = {"counts": counts, "ridge": method.ridge}
    if method.through is None:
        entries = ridge_entries(trees.codes, wanted, anchor, **options)
    else:
        entries = nonlinear_entries(trees.codes, wanted, anchor, method.through, **options)
    inputs = len(wide)
    if not method.rounded:
        return Table(trees.splits, trees.thresholds, entries.astype(dtype), inputs=inputs)
    exact = Table(trees.splits, trees.thresholds.astype(np.float64), entries, inputs=inputs)
    return in_bytes(exact, dtype=dtype)
