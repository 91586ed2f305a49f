"""The rows in which the study of a compressed network speaks; $Y$ are its outputs."""

from lowrank_theory._rows import AbstractRow, column

RELATIVE = r"$\lVert Y\rVert_F$"
BUDGET = "the share of the weights' bytes that was allowed"
WAY = "the way of compressing, of those of `ways`"
LAYER = "the path of the leaf"
DENSE = "the same of the weights as they were"


class DenseMetric(AbstractRow):
    """What the network is for, and how well the dense one does it."""

    name: str = column("metric", "its name")
    larger_is_better: bool = column("larger is better", "or else smaller")
    value: float = column("value", "for the dense network")
    scored: int = column("scored", "how many items are")


class NetworkAtSize(AbstractRow):
    """The network compressed to one share of its bytes in one way."""

    budget: float = column("budget", BUDGET)
    method: str = column("method", WAY)
    parameters: int = column(
        "parameters",
        "values, codes and scales of the weights that were to be compressed, with the shift that a "
        "data-driven layer adds",
    )
    dense_parameters: int = column("dense parameters", DENSE)
    bytes: int = column("bytes", "of the same")
    dense_bytes: int = column("dense bytes", DENSE)
    multiply_adds: int = column("multiply-adds", "multiplications for one batch")
    dense_multiply_adds: int = column("dense multiply-adds", DENSE)
    left_dense: int = column("layers left dense", "how many")
    output_loss: float = column(
        "mean loss",
        r"over held-out units, of $\min(1, \lVert Y - \hat Y\rVert_F^2/\lVert Y\rVert_F^2)$",
    )
    quantiles: tuple[float, ...] = column("quantiles", "0.1, 0.5 and 0.9, of the same")
    certificate: float = column(
        "certificate",
        "the mean loss of new units is below it with probability 0.95, whatever their law, if the "
        "held-out ones were drawn from it independently; each is a statement of its own",
    )
    error_calibration: float = column(
        "on calibration data", r"$\lVert Y - \hat Y\rVert_F$ over the calibration batches",
        unit=RELATIVE,
    )  # fmt: skip
    error_held_out: float = column(
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
    seconds: float | None = column("seconds", "that the compression took", default=None)

    @property
    def share(self) -> float:
        """Of the dense bytes."""
        return self.bytes / self.dense_bytes

    @property
    def share_of_multiply_adds(self) -> float:
        """Of the dense ones."""
        return self.multiply_adds / self.dense_multiply_adds


class UnmetBudget(AbstractRow):
    """A budget that a way cannot meet."""

    budget: float = column("budget", BUDGET)
    method: str = column("method", WAY)
    why: str = column("why", "in words")


class LayerCertificate(AbstractRow):
    """One layer of the data-driven network at half size, alone, on what it sees in the original."""

    layer: str = column("layer", LAYER)
    shape: tuple[int, ...] = column("shape", "(inputs, outputs), after the axes of a stack")
    rank: int | None = column("rank", "where the size is one")
    size: str | None = column("size", "in words; none where it stays dense")
    remark: str = column("remark", "what else is to be said, such as why it stays dense")
    parameters: int = column("parameters", "how many numbers it holds")
    dense_parameters: int = column("dense parameters", DENSE)
    bytes: int = column("bytes", "how many it takes")
    dense_bytes: int = column("dense bytes", DENSE)
    loss: float | None = column("mean loss", "that of the layer's outputs on held-out units")
    certificate: float | None = column(
        "certificate", "what the mean loss of new units is below with probability 0.95"
    )

    @property
    def share(self) -> float:
        """Of the dense bytes."""
        return self.bytes / self.dense_bytes


class Composition(AbstractRow):
    r"""The error of the network, and what those of its layers say of it, on one held-out batch."""

    layers: tuple[str, ...] = column("layers", "the paths of those that are replaced")
    measured: float = column(
        "measured", r"$\lVert F(W) - F(M)\rVert_F$, all layers replaced", unit=RELATIVE
    )
    alone: tuple[float, ...] = column(
        "alone", r"$\delta_i$, with layer $i$ alone replaced", unit=RELATIVE
    )
    sum: float = column("sum", r"$\sum_i\delta_i$", unit=RELATIVE)
    root_of_squares: float = column("root of squares", r"$(\sum_i\delta_i^2)^{1/2}$", unit=RELATIVE)
    steps: tuple[float, ...] = column(
        "steps", "what replacing layer $i$ changes, those before it being replaced", unit=RELATIVE
    )
    telescoping: float = column(
        "telescoping", "their sum: by the triangle inequality never below `measured`", unit=RELATIVE
    )
    telescoping_bound: float | None = column(
        "telescoping bound", "`network_composition.telescoping`, for a perceptron",
        unit=RELATIVE, default=None,
    )  # fmt: skip
    residuals_bound: float | None = column(
        "residuals bound", "`network_composition.residuals`, for a perceptron",
        unit=RELATIVE, default=None,
    )  # fmt: skip


class Timing(AbstractRow):
    """A call of the compressed network and of the dense one, in turn; medians."""

    batch: int = column("batch", "units at once")
    repetitions: int = column("repetitions", "of each call")
    dense: float = column("dense", "of a call", unit="s")
    factored: float = column("factored", "of a call", unit="s")
    speedup: float = column("dense / factored", "the median of the ratio")


class HalfSize(AbstractRow):
    """The data-driven network at the budget nearest to one half."""

    budget: float = column("budget", BUDGET)
    certificates: tuple[LayerCertificate, ...] = column("certificates", "of its layers")
    composition: Composition = column("composition", "of their errors")
    times: tuple[Timing, ...] = column("times", "at several sizes of a batch")


class Machine(AbstractRow):
    """Where times were measured."""

    system: str = column("system", "and processor")
    cores: int | None = column("cores", "that the process may use")
    device: str = column("device", "of JAX")
    jax: str = column("jax", "its version")
