"""How many layers are observed in one pass over the data: as many as memory holds."""

import itertools
import math
from collections.abc import Collection
from pathlib import Path

from lowrank_theory._engine.observation import Survey
from lowrank_theory.calibration import RowSample
from lowrank_theory.recovery import Need


def blocks_of(
    survey: Survey,
    paths: list[str],
    *,
    needs: frozenset[Need],
    paired: bool = False,
    halves: bool = False,
    passes: int | None = None,
) -> list[list[str]]:
    """Layers to be observed together, whole groups in the order of execution: in this number of
    passes or, without it, as few as half of the free memory allows, for statistics of what they see
    or, `paired`, also of what they see in the compressed network; with `halves`, of what they see
    in each half of the data.
    """
    if not paths:
        return []
    grouped = itertools.groupby(paths, lambda path: survey[path].group)
    groups = [list(group) for _, group in grouped]
    free = available_memory()
    if passes is None:
        blocks: list[list[str]] = []
        for group in groups:
            together = [*(blocks[-1] if blocks else []), *group]
            if blocks and _needed(survey, together, needs, paired, halves) <= free / 2:
                blocks[-1] += group
            else:
                blocks.append(group)
    else:
        ends = [len(groups) * k // passes for k in range(passes + 1)]
        cut = [groups[start:end] for start, end in itertools.pairwise(ends)]
        blocks = [list(itertools.chain(*part)) for part in cut if part]
    for block in blocks:
        needed = _needed(survey, block, needs, paired, halves)
        if needed > free:
            raise ValueError(
                f"The statistics of what {', '.join(block)} multiply take about "
                f"{needed / 2**30:.3g} GiB at once, and {free / 2**30:.3g} GiB are free. Leave the "
                "widest layers out by `select`, or allow more `passes`."
            )
    return blocks


def _needed(
    survey: Survey, paths: Collection[str], needs: frozenset[Need], paired: bool, halves: bool
) -> int:
    """About how many bytes the statistics of some layers take: matrices of second moments, and rows
    where these are needed, once more while a batch is added, and those of one decomposition.
    """
    rows = RowSample.SIZE * (1 + paired) if Need.ROWS in needs else 0
    statistics: dict[int, int] = {}
    widest = 0
    for path in paths:
        *stack, inputs, outputs = survey[path].view.matrix_shape
        each = (3 if paired else 1) * inputs**2 + rows * inputs
        statistics[survey[path].group] = math.prod(stack) * each
        widest = max(widest, inputs, outputs)
    return 8 * ((2 + halves) * sum(statistics.values()) + 6 * widest**2)


def available_memory() -> float:
    """How many bytes are free, infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * free[0] if free else math.inf
