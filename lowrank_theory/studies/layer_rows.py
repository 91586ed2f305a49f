r"""The rows in which the study of layers speaks.

A layer $Y = XW$ is the matrix of one leaf, or one of the stack that a leaf is. A bias counts
nowhere. `None` stands for what is infinite, does not apply, or was not kept.
"""

from collections.abc import Iterable

import numpy as np

from lowrank_theory._rows import AbstractRow, column
from lowrank_theory.theorems import AbstractStatement, Hypothesis, Standing
from lowrank_theory.verification.sampling import name_of

RELATIVE = r"$\lVert Y\rVert_F$"
NETWORK = "the name of the network"
LAYER = "the path of the leaf, with the number of the slice behind it"
SHAPE = "(inputs, outputs)"


def half_rank(inputs: int, outputs: int) -> int:
    """Half the full rank, but at least one: the rank at which layers are summed up."""
    return max(1, min(inputs, outputs) // 2)


def quarter_rank(inputs: int, outputs: int) -> int:
    """A quarter of the full rank, but at least one: the rank at which gains are summed up."""
    return max(1, min(inputs, outputs) // 4)


def ranks_up_to(largest: int, count: int, through: int) -> list[int]:
    """About `count` ranks in a geometric sweep from one to the largest, and the rank `through`
    which it has to pass.
    """
    ranks = np.geomspace(1, largest, count).round().astype(int).tolist()
    return sorted({*ranks, through})


class LayerAtRank(AbstractRow):
    r"""One layer, compressed alone to one rank. Errors are $\lVert Y - \hat Y\rVert_F$ on held-out
    rows.
    """

    network: str = column("network", NETWORK, brief=True)
    layer: str = column("layer", LAYER, brief=True)
    shape: tuple[int, int] = column("shape", SHAPE, brief=True)
    samples: int | None = column("rows", "those of the calibration", default=None)
    rank: int = column("rank", "of the compressed layer", brief=True)
    data_agnostic_error: float | None = column(
        "agnostic error", "of the truncated weights",
        unit=RELATIVE, brief=True, default=None,
    )  # fmt: skip
    data_agnostic_new_bias_error: float | None = column(
        "with a new bias",
        "of the truncated weights with the shift that suits the data: part of what the data-driven "
        "fit gains, it gains by its shift alone",
        unit=RELATIVE, default=None,
    )  # fmt: skip
    diagonal_error: float | None = column(
        "diagonal error",
        "of the weights truncated with inputs scaled by their root mean squares (the formula of "
        "`published.DiagonalQERA`)",
        unit=RELATIVE, brief=True, default=None,
    )  # fmt: skip
    data_driven_error: float | None = column(
        "driven error", "of the affine fit to the calibration",
        unit=RELATIVE, brief=True, default=None,
    )  # fmt: skip
    optimal_error: float | None = column(
        "optimum",
        "of the best affine map of that rank, which is fitted to the held-out rows themselves "
        "(where these are few, more than they can tell)",
        unit=RELATIVE, brief=True, default=None,
    )  # fmt: skip
    price_bound: float | None = column(
        "price bound",
        r"$(\sum_ks_k(X)^2s_{r+k}(W)^2)^{1/2}$, which bounds the data-agnostic error "
        "(`orientation.upper`, never above `price_of_ignoring_data.weight_tail`)",
        unit=RELATIVE, brief=True, default=None,
    )  # fmt: skip
    recovery_error: float | None = column(
        "recovery error",
        "what is stated to be the truth is $M$, the data-driven linear fit of half $A$ of the "
        "calibration; that of half $B$ is to recover it from $X_BW = X_BM + E$, and misses it by "
        "this",
        unit=r"$\lVert X_BW\rVert_F$", brief=True, default=None,
    )  # fmt: skip
    recovery_bound: float | None = column(
        "recovery bound", "the bound on the recovery error of any truth (`planted_rank.any_noise`)",
        unit=r"$\lVert X_BW\rVert_F$", brief=True, default=None,
    )  # fmt: skip
    projected_bound: float | None = column(
        "of a projection",
        "the bound on the recovery error that knows $M$ to be a projection of the layer "
        "(`projected_truth`, the smaller of both, and never above that of any truth)",
        unit=r"$\lVert X_BW\rVert_F$", brief=True, default=None,
    )  # fmt: skip
    samples_needed: int | None = column(
        "rows for 1 % excess",
        "after which the squared error exceeds the least by 1 % to first order "
        "(`calibration_size.leading_constant`), if rows are independent and Gaussian with the "
        "held-out covariance, and if the weights do not depend on them: those of training rows do, "
        "and for these the number promises nothing",
        default=None,
    )  # fmt: skip
    samples_sufficient: int | None = column(
        "rows that suffice",
        "after which, under the same conditions, it exceeds the least by at most 1 % with "
        "probability 0.95 (`calibration_size.relative`)",
        default=None,
    )  # fmt: skip
    certified: bool | None = column(
        "certified", "whether the numerical certificate of the data-driven fit holds", default=None
    )

    @property
    def is_at_half_rank(self) -> bool:
        """Whether it is the row by which the layer is summed up."""
        return self.rank == half_rank(*self.shape)


def at_half_rank(rows: Iterable[LayerAtRank]) -> list[LayerAtRank]:
    """The row of each layer at half its full rank."""
    return [row for row in rows if row.is_at_half_rank]


class LayerGain(AbstractRow):
    r"""Why data help at one layer and rank: what the best layer for these rows gains over truncated
    weights, and what says so. The gain is a ratio of squared errors, $\lVert X(W -
    [W]_r)\rVert_F^2$ over the least that is possible.
    """

    network: str = column("network", NETWORK)
    layer: str = column("layer", LAYER)
    shape: tuple[int, int] = column("shape", SHAPE)
    rank: int = column("rank", "of the compressed layer")
    centred: bool = column("centred", "whether the mean input is subtracted: what a bias can do")
    gain: float | None = column("gain", "measured; none where the optimum is rounding")
    certified_by_split: float | None = column(
        "certified, split",
        "what the gain is at least, by the best split of the rank between inputs and weights "
        "(`gain_of_data.split`)",
    )
    certified_by_angles: float | None = column(
        "certified, angles",
        "what it is at least, by the angles between the directions of $W$ and of $XW$ "
        "(`gain_of_data.excess_below`)",
    )
    explained: float | None = column(
        "explained",
        "what it would be, for large layers of the same two spectra, if the orientation were "
        "chance (`gain_of_data.law`)",
    )
    alignment: float | None = column("alignment", "measured over explained gain")
    output_excitation: float = column(
        "outputs", r"$\lVert XW\rVert_F^2$ over its mean over orientations"
    )
    excitation: float | None = column(
        "truncated part", "the squared data-agnostic error over its mean over orientations"
    )
    above: float | None = column(
        "p above",
        "how probable it is, if the orientation is chance, that the truncated directions are "
        "excited as strongly (`orientation.p_value`)",
    )
    below: float | None = column("p below", "that they are excited as weakly")
    error: float = column("agnostic error", "of the truncated weights", unit=RELATIVE)
    orientation_bound: float = column(
        "orientation bound", "its largest value over orientations (`orientation.upper`)",
        unit=RELATIVE,
    )  # fmt: skip
    weight_tail_bound: float = column(
        "weight tail", "`price_of_ignoring_data.weight_tail`, never the smaller", unit=RELATIVE
    )

    @property
    def is_at_quarter_rank(self) -> bool:
        """Whether it is a row by which the layer is summed up."""
        return self.rank == quarter_rank(*self.shape)

    @property
    def certified(self) -> float | None:
        """The larger of both certified gains."""
        known = [each for each in (self.certified_by_split, self.certified_by_angles) if each]
        return max(known, default=None)


class Spectrum(AbstractRow):
    """How the energy of vectors is spread over directions, at up to 60 indices that start at 1."""

    index: tuple[int, ...] = column("index", "numbers of eigenvalues of $G$, from the largest")
    share: tuple[float, ...] = column("share", "these over the sum of all")
    participation_ratio: float | None = column(
        "participation ratio", r"$(\operatorname{tr}G)^2/\operatorname{tr}G^2$"
    )


class ResidualSpectrum(AbstractRow):
    r"""The singular values of what is left of a layer at half rank, over their root mean square,
    beside the law of Marchenko and Pastur (1967) of a white matrix of that size.
    """

    edge_ratio: float = column("largest value / edge", "the largest over the edge of the law")
    distance: float = column("distance of the law", "that of Kolmogorov and Smirnov")
    position: tuple[float, ...] = column(
        "position", "the places of up to 60 of them among all, from 0 for the largest to 1"
    )
    singular_value: tuple[float, ...] = column("singular values", "those of the residual there")
    marchenko_pastur: tuple[float, ...] = column("white noise", "what the law has there")


class LayerData(AbstractRow):
    """What one layer saw and gave."""

    network: str = column("network", NETWORK)
    layer: str = column("layer", LAYER)
    shape: tuple[int, int] = column("shape", SHAPE)
    samples: int = column("rows", "those of the calibration")
    path: str = column("path", "of the leaf")
    slice: int | None = column("slice", "its number in the stack; none where the leaf is none")
    held_out_samples: int = column("held-out rows", "those on which errors are measured")
    activations: Spectrum = column("inputs", r"$G = X^\top X$, held out")
    preactivations: Spectrum = column("products", r"$G = W^\top X^\top XW$, held out")
    mean_share: float | None = column(
        "share of the mean", r"of $\lVert X\rVert_F^2$, what is due to the mean input"
    )
    condition_number: float | None = column("condition number", "of the held-out $X$")
    resolution: float | None = column(
        "resolution", "the error below which there is but rounding", unit=RELATIVE
    )
    effective_samples: float | None = column(
        "as independent Gaussian ones",
        "how many independent Gaussian rows would let the covariances of the outputs differ "
        "between the halves of the calibration as much as they do; a rough estimate, at most "
        "`samples`",
    )
    residual: ResidualSpectrum | None = column(
        "residual", "what half $A$ leaves of half $B$ at half rank; none where nothing is left"
    )


class LayerHypothesis(AbstractRow):
    """Whether one hypothesis of a statement holds of a layer at half its full rank.

    Those on laws data can only refute. Those of independence are trusted: no number shows them,
    nobody states them of a trained layer, and they are listed as not holding.
    """

    layer: str = column("layer", LAYER)
    statement: str = column("statement", "the name of the statement")
    name: str = column("hypothesis", "in words")
    standing: Standing = column(
        "standing", "checked: computed from the data; refutable: contradicted by data or not, "
        "never confirmed; trusted: assumed",
    )  # fmt: skip
    holds: bool = column("holds", "whether its margin is not negative")
    margin: float = column("margin", "for what is refutable, `allowed - statistic`")
    statistic: float | None = column("statistic", "of what is refutable", default=None)
    allowed: float | None = column(
        "allowed", "what the statistic exceeds with probability about 0.01 if the hypothesis holds",
        default=None,
    )  # fmt: skip

    @classmethod
    def of(
        cls, layer: str, statement: AbstractStatement, hypothesis: Hypothesis
    ) -> "LayerHypothesis":
        """What a theorem asks, with its margin on the layer."""
        margin = float(hypothesis.margin)
        return cls(
            layer=layer,
            statement=name_of(statement),
            name=hypothesis.name,
            standing=hypothesis.standing,
            holds=margin >= 0,
            margin=margin,
        )

    @classmethod
    def refutable(
        cls, layer: str, statement: AbstractStatement, name: str, statistic: float, allowed: float
    ) -> "LayerHypothesis":
        """What data can contradict, by a statistic that exceeds what is allowed."""
        return cls(
            layer=layer,
            statement=name_of(statement),
            name=name,
            standing=Standing.REFUTABLE,
            holds=bool(statistic <= allowed),
            margin=allowed - statistic,
            statistic=statistic,
            allowed=allowed,
        )


class LayerSummary(AbstractRow):
    """One layer at half its full rank: what ignoring the data costs, and how much of that cost the
    bound explains.
    """

    network: str = column("network", NETWORK)
    layer: str = column("layer", LAYER)
    rank: int = column("rank", "half the full rank")
    gain: float | None = column(
        "gain", "how many times smaller the data-driven error is than the data-agnostic one"
    )
    gain_of_bias: float | None = column(
        "gain of the bias", "how much of that a new bias alone gives to the truncated weights"
    )
    price: float | None = column(
        "price", "how many times the optimal error the data-agnostic one is"
    )
    looseness: float | None = column(
        "looseness", "how many times the data-agnostic error its bound is"
    )
    sentence: str = column("in words", "the same in words")
