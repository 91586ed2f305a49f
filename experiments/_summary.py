"""What is quoted of one studied network: the entries of `figures/transfer_summary.json`."""

import dataclasses

from lowrank_theory.studies.transfer_rows import DenseMetric, Timing


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of several numbers."""

    least: float
    median: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Misfit:
    """Where an error is not the smaller of two: how many times larger it is."""

    layer: str
    rank: int
    times: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How many times smaller one error is than another, over layers and ranks."""

    pairs: int
    gain: Spread | None
    gain_at_half_rank: Spread | None
    exceptions: tuple[Misfit, ...]


@dataclasses.dataclass(frozen=True)
class Bounded:
    """How many times the error its bound is, and how often the bound says nothing."""

    looseness: Spread | None
    looseness_at_half_rank: Spread | None
    pairs: int
    violated: int
    above_the_outputs: int


@dataclasses.dataclass(frozen=True)
class Failing:
    """A hypothesis that fails somewhere: in how many layers, and how far beyond the allowed."""

    statement: str
    name: str
    layers: int
    of: int
    times_allowed: Spread | None


@dataclasses.dataclass(frozen=True)
class Size:
    """The network at one size in one way; its metric also relative to that of the dense one."""

    budget: float
    method: str
    share: float
    multiply_adds: float
    error_held_out: float
    error_calibration: float
    output_loss: float
    certificate: float
    metric: float
    difference: float
    low: float
    high: float
    relative_change: float


@dataclasses.dataclass(frozen=True)
class Sequential:
    """The network's error, fitted one layer after the other, over that of layers fitted alone."""

    budget: float
    calibration: float
    held_out: float


@dataclasses.dataclass(frozen=True)
class Following:
    """How the metric follows the output error, over all sizes and methods: Spearman's correlation
    of the error with what the metric loses; the largest error at which no loss is measurable, the
    interval of the change reaching zero; the smallest at which one is.
    """

    correlation: float | None
    largest_without_loss: float | None
    smallest_with_loss: float | None
    gains: int


@dataclasses.dataclass(frozen=True)
class Certificates:
    """Those of layers."""

    layers: Spread | None
    over_loss: Spread | None
    vacuous: int
    of: int


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What the errors of layers predict of the network's, each over the measured one."""

    measured: float
    sum: float | None
    root_of_squares: float | None
    telescoping: float | None
    telescoping_bound: float | None
    residuals_bound: float | None


@dataclasses.dataclass(frozen=True)
class Plotted:
    """Errors and bounds of every layer and rank."""

    data_agnostic_error: tuple[float | None, ...]
    price_bound: tuple[float | None, ...]
    recovery_error: tuple[float | None, ...]
    projected_bound: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """One network."""

    title: str
    metric: DenseMetric
    layers: int
    driven_and_agnostic: Comparison
    driven_and_diagonal: Comparison
    driven_over_optimum: Spread | None
    price: Bounded
    recovery: Bounded
    projected: Bounded
    edge_ratio: Spread | None
    distance: Spread | None
    effective_share: Spread | None
    failing: tuple[Failing, ...]
    sizes: tuple[Size, ...]
    others: tuple[Size, ...]
    sequential: tuple[Sequential, ...]
    following: Following
    certificates: Certificates
    composition: Predictions
    times: tuple[Timing, ...]
    plotted: Plotted
