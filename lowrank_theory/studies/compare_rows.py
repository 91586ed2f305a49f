"""The rows in which methods are compared on one network; $Y$ are its outputs."""

from lowrank_theory._rows import AbstractRow, column
from lowrank_theory.studies.transfer_rows import BUDGET, RELATIVE, WAY, Timing

LAYER = "the path of the leaf, with the number of the slice"
VALUES = "of the bits of a dense layer, those of the values alone: not of where they stand"
IDEAL = "of the same, with everything that is written down, each entry in as many bits as it needs"
REAL = "of the bytes of a dense layer, those of the arrays as they are held and stored"
OF_WEIGHTS = r"$\lVert W\rVert_F$"
OF_PRODUCTS = r"$\lVert XW\rVert_F$"


class LayerStatistics(AbstractRow):
    """What the weights of a layer and its inputs are like; functions of `studies.statistics`."""

    layer: str = column("layer", LAYER)
    shape: tuple[int, int] = column("shape", "(inputs, outputs)")
    rows: int = column("rows", "of the calibration")
    kurtosis: float | None = column("kurtosis", "of the weights; three for a normal law")
    stable_rank: float | None = column(
        "stable rank", r"$\lVert W\rVert_F^2/\lVert W\rVert^2$, over the smaller side"
    )
    outlier_weights: float | None = column(
        "outliers, weights", "the largest squared norm of an input's weights, over the mean one"
    )
    participation_ratio: float | None = column(
        "participation ratio", r"$(\operatorname{tr}H)^2/\operatorname{tr}H^2$, over the inputs"
    )
    centred_participation_ratio: float | None = column(
        "the same, centred", "of the covariance of the inputs"
    )
    outlier_inputs: float | None = column(
        "outliers, inputs", "the largest mean square of an input, over the mean one"
    )
    mean_share: float | None = column(
        "share of the mean", r"of $\lVert X\rVert_F^2$, what is due to the mean input"
    )


class LayerAtSize(AbstractRow):
    """One layer, alone, at one size of one method."""

    layer: str = column("layer", "the path of the leaf")
    method: str = column("method", WAY)
    size: str = column("size", "in the words of the method")
    values: float = column("values", VALUES)
    ideal: float = column("ideal bits", IDEAL)
    real: float = column("bytes", REAL)
    weight_error: float | None = column(
        "weight error",
        r"$\lVert W - \hat W\rVert_F$, which is also the error of the outputs of white inputs; "
        "none where there is no matrix",
        unit=OF_WEIGHTS,
    )
    output_error: float = column(
        "output error",
        r"$\lVert X(W - \hat W) - \mathbf 1s^\top\rVert_F$ on held-out inputs, with the shift $s$ "
        "where there is one; of tables on a sample of them",
        unit=OF_PRODUCTS,
    )


class NetworkAtBudget(AbstractRow):
    """The network at one share of its bits by one method."""

    budget: float = column("budget", "the share of the weights' bits that was allowed")
    method: str = column("method", WAY)
    values: float = column("values", VALUES)
    ideal: float = column("ideal bits", IDEAL)
    real: float = column("bytes", REAL)
    left_dense: int = column("layers left dense", "how many")
    weight_error: float | None = column(
        "weight error",
        "the root mean square over the layers of their relative errors, that of a layer left dense "
        "being zero; none where one has no matrix",
    )
    layer_error: float = column(
        "layer error", "the same of the relative errors of their outputs, each alone"
    )
    output_error: float = column(
        "output error", r"$\lVert Y - \hat Y\rVert_F$ over the held-out batches", unit=RELATIVE
    )
    metric: float = column("metric", "what the network is for, of this one")
    difference: float = column(
        "change", "of the metric from the dense network's, on the same items"
    )
    low: float = column(
        "from", "the lower end of a paired bootstrap interval for the change (95 %)"
    )
    high: float = column("to", "its upper end")


class TimeOfMethod(AbstractRow):
    """How long a call takes beside one of the dense network, at one budget."""

    budget: float = column("budget", BUDGET)
    method: str = column("method", WAY)
    ideal: float = column("ideal bits", IDEAL)
    real: float = column("bytes", REAL)
    times: tuple[Timing, ...] = column("times", "at several sizes of a batch")


class Proxy(AbstractRow):
    """How well an error orders what the networks lose: those of one family, or all of them."""

    error: str = column("error", "`weight_error`, `layer_error` or `output_error` of the networks")
    family: str | None = column("family", "of `compare.FAMILIES`; none for all together")
    networks: int = column("networks", "how many are compared")
    correlation: float | None = column(
        "rank correlation", "Spearman's, of the error with the loss of the metric"
    )
    low: float | None = column(
        "from", "the lower end of a bootstrap interval over the networks (95 %)"
    )
    high: float | None = column("to", "its upper end")
    pairs: int = column("pairs", "of networks whose metrics and errors differ")
    inverted: int = column("inverted", "of these, where the smaller error has the worse metric")
    clearly: int = column(
        "clearly", "of these, where the intervals of the two changes do not overlap"
    )


class InvertedPair(AbstractRow):
    """Two networks of which the one with the smaller error has the worse metric."""

    error: str = column("error", "as in `Proxy`")
    nearer: str = column("nearer", "the method of the one with the smaller error")
    nearer_budget: float = column("its budget", "as in `NetworkAtBudget`")
    nearer_error: float = column("its error", "the smaller one")
    nearer_metric: float = column("its metric", "the worse one")
    better: str = column("better", "the method of the other")
    better_budget: float = column("budget of that", "as in `NetworkAtBudget`")
    better_error: float = column("error of that", "the larger one")
    better_metric: float = column("metric of that", "the better one")
