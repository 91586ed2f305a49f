r"""Thresholds that can be trained.

A comparison has no derivative. In the *soft* table a row goes right at a node with threshold $v$ by
the share $\sigma((x_j - v)/\tau)$, $\sigma$ the logistic function and $\tau$ the *temperature*;
the share of a code is the product along its path, and the outputs are the sums of entries by their
shares. As $\tau \to 0$ the soft table becomes the table, but where an input equals a threshold.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from lowrank_theory._numerics import AnyArray, check_positive, ours
from lowrank_theory.approximations import AbstractTable, Table
from lowrank_theory.approximations._approximation import as_stored


def straight_through(
    table: AbstractTable, rows: Float[AnyArray, "samples inputs"], *, temperature: Any
) -> Float[AnyArray, "samples outputs"]:
    r"""What `table.apply` gives, exactly, with derivatives for training (Bengio, Léonard and
    Courville 2013). With respect to the entries they are those of the table, $G^\top$ times those
    of the outputs, where $G$ are the indicators of the codes; with respect to thresholds and rows
    those of the soft table of this `temperature`, in the unit of the inputs. Which inputs are
    compared stays.

    Differentiate by `equinox.filter_grad`, which leaves the integers of the table alone; where it
    is trained, `in_bytes` rounds it. Of a stack, take one at a time (`jax.vmap`). Raises
    `ValueError` for a stack, and for a temperature that is not positive; a traced one is not
    checked.
    """
    if not isinstance(table, Table) or table.splits.ndim != 2:
        raise ValueError(
            f"`table` must be one `Table`; got {type(table).__name__}{getattr(table, 'shape', '')}."
        )
    if not isinstance(temperature, Tracer):
        temperature = check_positive("temperature", temperature)
    with as_stored(rows, table):
        arrays = table.splits, table.thresholds, lax.stop_gradient(ours(table.entries)), ours(rows)
        splits, thresholds, entries, seen = map(jnp.asarray, arrays)
        soft = _softened(splits, thresholds, entries, seen, temperature)
        return table.apply(rows) + (soft - lax.stop_gradient(soft))


def _softened(
    splits: Integer[Array, "codebooks levels"],
    thresholds: Float[Array, "codebooks nodes"],
    entries: Float[Array, "codebooks codes outputs"],
    rows: Float[Array, "samples inputs"],
    temperature: Any,
) -> Float[Array, "samples outputs"]:
    codebooks, levels = splits.shape
    shares = jnp.ones((rows.shape[0], codebooks, 1), rows.dtype)
    for level in range(levels):
        limits = thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        right = jax.nn.sigmoid((rows[:, splits[:, level], None] - limits) / temperature)
        both = jnp.stack([shares * (1 - right), shares * right], axis=-1)
        shares = both.reshape(*both.shape[:-2], -1)
    return jnp.einsum("rck,cko->ro", shares, entries)
