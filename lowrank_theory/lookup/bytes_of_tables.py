r"""Tables in bytes.

An entry $T$ of codebook c becomes $q = \lfloor(T - m_c)/\Delta + \tfrac12\rfloor$ from 0 to 255,
where $m_c$ is the least entry of the codebook and $255\Delta$ the widest range of any codebook. An
output is $\sum_cm_c + \Delta\sum_cq_c$, and errs by $C\Delta/2$ at most. The published tables share
$m_c$ and $\Delta$ among all outputs (Blalock and Guttag 2021); with one of each for every output,
an extension, outputs of small range lose no more than their share.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Integer

from lowrank_theory.approximations import RoundedTable, Table


def in_bytes(
    table: Table, *, per_output: bool = True, power_of_two: bool = False, dtype: Any = None
) -> RoundedTable:
    r"""The table with one byte for each entry. Steps are `per_output` or one for all; raised to a
    `power_of_two`, they are a shift of bits, and twice as long at most. What stays in floating
    point is of this dtype, by default that of the table.
    """
    dtype = table.dtype if dtype is None else np.dtype(dtype)
    entries = np.asarray(table.entries).astype(np.float64)
    least = entries.min(axis=-2 if per_output else (-2, -1), keepdims=True)
    ranges = (entries.max(axis=-2 if per_output else (-2, -1), keepdims=True) - least).max(axis=-3)
    step = ranges[..., 0, :] / 255
    if power_of_two:
        digits, powers = np.frexp(step)
        step = np.where(step > 0, np.ldexp(1.0, powers - (digits == 0.5)), 0)
    else:
        step = step * (1 + float(jnp.finfo(dtype).eps))  # or, as it is stored, 255 might fall short
    step = step.astype(dtype)
    shift = np.broadcast_to(least.sum(axis=-3)[..., 0, :], (*step.shape[:-1], table.shape[-1]))
    wide = step.astype(np.float64)[..., None, None, :]
    places = (entries - least) / np.where(wide > 0, wide, np.inf)
    codes = np.clip(np.floor(places + 0.5), 0, 255).astype(np.uint8)
    thresholds = np.asarray(table.thresholds).astype(dtype)
    return RoundedTable(
        table.splits, thresholds, codes, step, shift.astype(dtype), inputs=table.inputs
    )


def averaged_sums(
    entries: Integer[np.ndarray, "... codebooks"], *, unbiased: bool = True
) -> Int[np.ndarray, "..."]:
    r"""The sums of bytes as a processor without wide registers finds them: blocks of $U =
    \min(16, C)$ are averaged in pairs, each rounded up, and the averages of blocks are added and
    multiplied by $U$. `unbiased`, less $\lfloor C\log_2U/4\rfloor$, which rounding adds in the mean
    where odd and even are alike.

    An emulation for comparison: `RoundedTable` adds exactly. Raises `ValueError` where $U$ is no
    power of two or does not divide $C$.
    """
    codebooks = entries.shape[-1]
    block = min(16, codebooks)
    if block & (block - 1) or codebooks % block:
        raise ValueError(
            "`entries` must be of 1, 2, 4, 8, or a multiple of 16 codebooks, to be averaged in "
            f"pairs; got {codebooks}. `RoundedTable` adds any number."
        )
    blocks = np.asarray(entries, np.int64).reshape(*entries.shape[:-1], -1, block)
    while blocks.shape[-1] > 1:
        blocks = (blocks[..., ::2] + blocks[..., 1::2] + 1) >> 1
    bias = codebooks * (block.bit_length() - 1) // 4 if unbiased else 0
    return block * blocks[..., 0].sum(axis=-1) - bias
