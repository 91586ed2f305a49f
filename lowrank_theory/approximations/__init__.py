"""What stands in the place of a matrix: one final class each, and one ledger of what it takes.

An approximation maps rows of inputs to rows of outputs (`apply`) and knows its `storage`. All but
`Table`, `RoundedTable` and `Affine` are matrices: they `materialise`, multiply and transpose.
"""

from lowrank_theory.approximations._approximation import (
    AbstractApproximation as AbstractApproximation,
)
from lowrank_theory.approximations._approximation import AbstractMatrix as AbstractMatrix
from lowrank_theory.approximations._approximation import Storage as Storage
from lowrank_theory.approximations._combined import Product as Product
from lowrank_theory.approximations._combined import Sum as Sum
from lowrank_theory.approximations._combined import Transposed as Transposed
from lowrank_theory.approximations._described import described as described
from lowrank_theory.approximations._described import register as register
from lowrank_theory.approximations._described import restored as restored
from lowrank_theory.approximations.affine import Affine as Affine
from lowrank_theory.approximations.dense import Dense as Dense
from lowrank_theory.approximations.low_rank import LowRank as LowRank
from lowrank_theory.approximations.quantised import Quantised as Quantised
from lowrank_theory.approximations.sparse import Bitmap as Bitmap
from lowrank_theory.approximations.sparse import CompressedRows as CompressedRows
from lowrank_theory.approximations.sparse import NOfM as NOfM
from lowrank_theory.approximations.sparse import Sparse as Sparse
from lowrank_theory.approximations.sparse import WholeRows as WholeRows
from lowrank_theory.approximations.table import AbstractTable as AbstractTable
from lowrank_theory.approximations.table import RoundedTable as RoundedTable
from lowrank_theory.approximations.table import Table as Table
