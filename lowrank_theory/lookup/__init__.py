"""Products with fixed weights by look-up tables: one file for each part of the method.

Rows of inputs are cut into subspaces (`orders`); in each a codebook finds one of few codes, by
comparisons (`trees`) or by the nearest centre (`product_quantisation`); an output is the sum of the
entries of its codes (`entries`, `nonlinear`), in floats or in bytes (`bytes_of_tables`). Tables
are trained further by `Table.straight_through`, and leave for other languages as in `exported`.
"""

from lowrank_theory.lookup.bytes_of_tables import averaged_sums as averaged_sums
from lowrank_theory.lookup.bytes_of_tables import in_bytes as in_bytes
from lowrank_theory.lookup.entries import bucket_means as bucket_means
from lowrank_theory.lookup.entries import ridge_entries as ridge_entries
from lowrank_theory.lookup.entries import summed_entries as summed_entries
from lowrank_theory.lookup.exported import export_table as export_table
from lowrank_theory.lookup.exported import import_table as import_table
from lowrank_theory.lookup.look_up import LookUp as LookUp
from lowrank_theory.lookup.look_up import look_up as look_up
from lowrank_theory.lookup.nonlinear import AbstractNonlinearity as AbstractNonlinearity
from lowrank_theory.lookup.nonlinear import Rectified as Rectified
from lowrank_theory.lookup.nonlinear import Softmax as Softmax
from lowrank_theory.lookup.nonlinear import nonlinear_entries as nonlinear_entries
from lowrank_theory.lookup.orders import AbstractOrder as AbstractOrder
from lowrank_theory.lookup.orders import AsTheyCome as AsTheyCome
from lowrank_theory.lookup.orders import Correlated as Correlated
from lowrank_theory.lookup.orders import Rotated as Rotated
from lowrank_theory.lookup.product_quantisation import Centres as Centres
from lowrank_theory.lookup.product_quantisation import k_means as k_means
from lowrank_theory.lookup.trees import grown as grown
