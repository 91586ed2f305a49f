r"""What may be promised of a compressed layer or network on new inputs, from held-out ones.

A *unit* is whatever is drawn independently: a row, an image, a sequence, a document. What belongs
to one unit, such as the patches of an image or the tokens of a sequence, depends on each other and
counts once. Where the original gives $Y$ on a unit and the compressed one $\hat Y$, biases
included, the loss of the unit is

$$Z = \min\Bigl(1,\ \frac{\lVert Y - \hat Y\rVert_F^2}{\lVert Y\rVert_F^2}\Bigr),$$

and where $Y = 0$ it is zero if $\hat Y = 0$ and one if not. So a unit that is wholly wrong counts
one, however wrong it is, and outputs of zeros have loss one: a certificate of one says nothing.

`theorems.held_out_certificate.order_free`, with range one, makes of the losses of $n$ units a bound
on the mean loss of their law, which holds with probability $1-\delta$ over these units, in
whatever order they are given. It rests on two things that no computation sees: the units are
independent draws of one law; and nothing was fitted to them, nor chosen by them (not even the
better of two compressions).

Where no units can be held out, `certify_code` makes of the losses of the calibration units, and of
how many bits the compression chose by them, a bound that holds for every choice.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import xlogy

from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_fraction,
    check_positive,
    check_same,
    rounding_allowance,
)
from lowrank_theory.calibration import RowSample
from lowrank_theory.calibration.overlap import check_unseen
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import Recovery
from lowrank_theory.theorems.held_out_certificate import certificate


@dataclasses.dataclass(frozen=True)
class OutputCertificate:
    r"""With probability at least $1-\delta$ over the held-out units, the mean loss of new units of
    the same law is at most `bound`. The loss is a squared relative output error, clipped at one:
    see `lowrank_theory.certification`.

    - `bound`: what is certified;
    - `mean`, `largest`: the mean and the largest loss of the held-out units;
    - `units`: how many there were;
    - `failure_probability`: $\delta$;
    - `copies`: how many of the units are copies of earlier ones, units of zeros apart; `None` where
      only losses were given;
    - `compared`: how many could be compared with the rows of the calibration; zero where it kept no
      sample of them, as in a file from before there was one;
    - `seen`: how many of these it has seen, rows and all: no more than chance gives.
    """

    bound: float
    mean: float
    largest: float
    units: int
    failure_probability: float
    copies: int | None = None
    compared: int = 0
    seen: int = 0

    @property
    def relative_error(self) -> float:
        r"""The square root of `bound`, which the mean of $\min(1, \lVert Y - \hat Y\rVert_F /
        \lVert Y\rVert_F)$ does not exceed either (Jensen).
        """
        return math.sqrt(self.bound)

    @property
    def vacuous(self) -> bool:
        """Whether no less is certified than what outputs of zeros have."""
        return self.bound >= 1 - rounding_allowance(1.0, self.units)

    def require(self) -> "OutputCertificate":
        """This certificate, or a `RuntimeError` where it is vacuous."""
        if self.vacuous:
            raise RuntimeError(
                f"The certificate is vacuous: {self.units} units with a mean loss of "
                f"{self.mean:.3g} do not show that new ones lose less than everything. Hold out "
                "more units, or compress less."
            )
        return self

    def __str__(self) -> str:
        """What is certified, as a sentence."""
        promise = (
            f"With probability {1 - self.failure_probability:g} the mean squared relative output "
            f"error of new units, each clipped at 1, is at most {self.bound:.3g}; that of "
            f"{self.units} held-out units is {self.mean:.3g}."
        )
        if self.copies is None:
            return promise
        if self.copies:
            promise += f" {self.copies} of them are copies of others."
        if not self.compared:
            return f"{promise} They could not be compared with the rows of the calibration."
        if self.seen:
            promise += f" The calibration has {self.seen} of the {self.compared} compared with it."
        return promise


def certify(
    observed: Observed,
    recovery: Recovery,
    *,
    held_out: ArrayLike,
    failure_probability: float,
    held_out_compressed: ArrayLike | None = None,
) -> OutputCertificate:
    r"""Certify a recovered layer on units that it was not recovered from.

    `held_out` is what the layer sees there: (units, inputs), one row each, or (units, rows,
    inputs). The original outputs are $Y = XW + \mathbf 1b^\top$, those of the compressed layer
    $\hat Y = XZ + \mathbf 1c^\top$ with the recovery's factors and bias.

    Inside a compressed network a layer sees $\tilde X$ in place of $X$. A layer that was observed
    with compressed activations is certified for that place: `held_out_compressed`, what it sees
    there of the same rows, is then needed, and $\hat Y = \tilde XZ + \mathbf 1c^\top$. The promise
    holds as long as the layers before it stay as they are.

    Units are compared with the rows of the calibration: with all activations at hand, or with the
    sample that a streamed calibration keeps. If $k$ of its $n$ distinct rows are kept ($k = n$ up
    to 4,096), then $c$ rows that are given again are found with probability $1 - (1 - k/n)^c$, in
    any order and dtype, if their values to 24 bits are the same; what was rounded to half precision
    on the way, or computed anew in another order of sums, is not. Rows of zeros are not compared.
    As data may repeat, what is refused is more than chance gives, as
    `paper_notes/held_out_certificate.md` says; the certificate counts the rest.

    Raises `ValueError` for a layer without weights, a recovery of another shape, fewer than two
    units, units that are rows of the calibration or copies of each other beyond chance, arrays of
    wrong or different shapes or with NaN, compressed activations missing, and $\delta$ outside
    (0, 1).
    """
    if not isinstance(observed, Observed):
        raise ValueError(f"`observed` must be an `Observed`; got {type(observed).__name__}.")
    if not isinstance(recovery, Recovery):
        raise ValueError(f"`recovery` must be a `Recovery`; got {type(recovery).__name__}.")
    weights, factors = observed.weights, recovery.factors
    if weights is None:
        raise ValueError(
            "`observed` has no `weights`, so the outputs on new units are not known. Measure them, "
            "and use `certify_losses(unit_losses(outputs, compressed_outputs), ...)`."
        )
    if factors.shape != weights.shape:
        raise ValueError(
            f"`recovery` is of a layer {factors.shape}, but `observed` is {weights.shape}."
        )
    inputs = _units("held_out", held_out, weights)
    if len(inputs) < 2:
        raise ValueError("`held_out` must have at least two units; got 1. Hold out more.")
    overlap = check_unseen(inputs.reshape(len(inputs), -1, inputs.shape[-1]), *_seen(observed))
    seen = inputs
    if held_out_compressed is not None:
        seen = _units("held_out_compressed", held_out_compressed, weights)
        if seen.shape != inputs.shape:
            raise ValueError(
                f"`held_out_compressed` must be of the rows of `held_out`, {inputs.shape}; got "
                f"{seen.shape}."
            )
    elif _has_compressed(observed):
        raise ValueError(
            "`observed` has compressed activations, so its replacement sees others than the "
            "layer: give `held_out_compressed`, what it sees of the held-out rows."
        )
    outputs = _affine(observed.bias, inputs, weights)
    compressed_outputs = _affine(recovery.bias, seen, factors.left, factors.right)
    power = max(outputs[1], compressed_outputs[1])  # losses do not depend on a common factor
    outputs, compressed_outputs = (
        np.ldexp(array, each - power) for array, each in (outputs, compressed_outputs)
    )
    found = certify_losses(unit_losses(outputs, compressed_outputs), failure_probability)
    return dataclasses.replace(found, **dataclasses.asdict(overlap))


def _units(name: str, value: ArrayLike, weights: AnyArray) -> Float[np.ndarray, "units *rows _in"]:
    array = check_array(name, value, "units", "...", lent=True)
    rows = ("rows",) if array.ndim == 3 else ()
    checked = check_array(name, array, "units", *rows, "inputs")
    check_same(name, checked.shape[-1], "weights", weights.shape[0], "inputs")
    return np.asarray(checked, float)


def _affine(bias: AnyArray | None, *matrices: AnyArray) -> tuple[np.ndarray, int]:
    r"""The product of the matrices, plus a bias, divided by $2^p$, and p: entries are near one."""
    scaled, powers = zip(*map(_at_scale_one, matrices), strict=True)
    product, power = functools.reduce(np.matmul, scaled), sum(powers)
    if bias is None or not np.any(np.asarray(bias)):
        return product, power
    shift, shift_power = _at_scale_one(bias)
    together = max(power, shift_power) if np.any(product) else shift_power
    return np.ldexp(product, power - together) + np.ldexp(shift, shift_power - together), together


def _at_scale_one(array: AnyArray) -> tuple[np.ndarray, int]:
    array = np.asarray(array, float)
    power = int(np.frexp(np.max(np.abs(array)))[1])
    return np.ldexp(array, -power), power


def _has_compressed(observed: Observed) -> bool:
    calibration = observed.calibration
    streamed = calibration is not None and calibration.has_compressed
    return streamed or observed.compressed_activations is not None


def _seen(observed: Observed) -> tuple[RowSample | None, str]:
    """What is known of the rows of the calibration, and its name."""
    if observed.activations is not None:
        return RowSample.of_all(observed.activations), "observed.activations"
    sample = None if observed.calibration is None else observed.calibration.rows_seen
    return (sample if sample is not None and sample.intact else None), "observed.calibration"


def certify_losses(losses: ArrayLike, failure_probability: float) -> OutputCertificate:
    """Certify the mean of losses from zero to one, one for each independent unit, in any order:
    those of `unit_losses`, of `networks.unit_errors` and `networks.output_errors`, or one's own.

    Several certificates hold together where the failure probability is divided by their number.

    Raises `ValueError` for fewer than two losses, for losses that are NaN, negative or above one,
    and for a probability outside (0, 1).
    """
    bound = float(certificate(losses, 1.0, failure_probability).value)
    values = np.asarray(losses, float)
    largest = float(values.max())
    if largest > 1:
        raise ValueError(
            f"`losses` must be from 0 to 1; got {largest:.3g}. Clip them, and certify that."
        )
    return OutputCertificate(
        bound, float(values.mean()), largest, values.size, float(failure_probability)
    )


@dataclasses.dataclass(frozen=True)
class CodeCertificate:
    r"""With probability at least $1-\delta$ over the calibration units, the mean loss of new units
    of the same law is at most `bound`, whatever was chosen by these units, as long as it is written
    in so many `bits`: see `certify_code` for what this rests on.

    - `bound`: what is certified, by the binary relative entropy;
    - `hoeffding`: the same by Hoeffding's inequality, never less, and possibly above one;
    - `mean`, `largest`: the mean and the largest loss of the calibration units;
    - `units`: how many there were;
    - `bits`: the length of the code, with what makes it free of prefixes;
    - `failure_probability`: $\delta$.
    """

    bound: float
    hoeffding: float
    mean: float
    largest: float
    units: int
    bits: float
    failure_probability: float

    @property
    def vacuous(self) -> bool:
        r"""Whether Hoeffding's bound is one or more, and so for all losses once there are $2n/\ln2
        = 2.9n$ bits or more. `bound` is then 0.86 or more.
        """
        return self.hoeffding >= 1 - rounding_allowance(1.0, self.units)

    def require(self) -> "CodeCertificate":
        """This certificate, or a `RuntimeError` where it is vacuous."""
        if self.vacuous:
            raise RuntimeError(
                f"The certificate is vacuous: {self.bits:,.0f} bits were chosen by {self.units:,} "
                f"units with a mean loss of {self.mean:.3g}. Hold out units, or choose fewer bits: "
                "an index into compressions that were fixed on other data."
            )
        return self

    def __str__(self) -> str:
        """What is certified, as a sentence."""
        return (
            f"With probability {1 - self.failure_probability:g} the mean loss of new units is at "
            f"most {self.bound:.3g}, if the {self.units:,} calibration units, whose mean loss is "
            f"{self.mean:.3g}, had no part in the dense network and the decoder, and all that they "
            f"chose is in {self.bits:,.1f} bits."
        )


def certify_code(
    losses: ArrayLike, bits: Any, failure_probability: float, *, prefix_free: bool = False
) -> CodeCertificate:
    r"""Certify the mean of losses from zero to one, one for each independent unit, on the very
    units by which a compression was chosen, from the length of what it chose.

    If no codeword begins another one (`prefix_free`, such as an index into a list of compressions
    that was fixed beforehand: $\log_2$ of its length), `bits` $b$ is that length. A bare file,
    whose end is where it ends, takes $2\log_2b + 2$ more. Then with probability $1-\delta$, for
    all codes at once, the mean $\mu$ of the law of a loss and $\bar Z$ of the $n$ units satisfy

    $$n\,\mathrm{kl}(\bar Z, \mu) \le b\ln2 + \ln\tfrac1\delta \quad\text{or}\quad \mu \le \bar Z,
    \qquad \mu \le \bar Z + \sqrt{\frac{b\ln2 + \ln\frac1\delta}{2n}}$$

    (Occam's razor; paper_notes/held_out_certificate.md). It rests on what no computation sees:

    - the units are independent draws of one law;
    - the decoder, which makes the compressed network of the code, was fixed before the units were
      drawn; and so was all that it uses, the *dense network* above all. For a network that was
      trained on its calibration units this is false, unless the code holds all of its weights;
    - the code holds all that depends on the units: ranks, scales, every weight.

    It says little unless there are more units than a third of the bits (see `vacuous`). So it suits
    a few bits that were chosen among compressions of other data, and no file of a network. For
    these `certify_losses` at the failure probability $\delta2^{-b}$ rests on the same, and is
    narrower where most losses are small.

    Raises `ValueError` for fewer than two losses, for losses that are NaN, negative or above one,
    for negative bits, and for a probability outside (0, 1).
    """
    values = np.asarray(check_array("losses", losses, "units"), float)
    if values.size < 2 or values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"`losses` must be two or more, from 0 to 1; got {values.size} from "
            f"{values.min():.3g} to {values.max():.3g}."
        )
    length = check_positive("bits", bits, zero=True)
    failure_probability = check_fraction("failure_probability", failure_probability)
    if not prefix_free:
        length += 2 * math.log2(max(length, 1)) + 2
    units = values.size
    mean = math.fsum(values) / units  # in whatever order they come
    level = (length * math.log(2) - math.log(failure_probability)) / units
    hoeffding = mean + math.sqrt(level / 2)
    largest = float(values.max())
    bound = _highest_mean(mean, level)
    return CodeCertificate(bound, hoeffding, mean, largest, units, length, failure_probability)


def _highest_mean(mean: float, level: float) -> float:
    r"""The largest $p \in [q, 1]$ with $\mathrm{kl}(q, p) \le$ `level`, from above."""

    def far(p: float) -> bool:
        apart = xlogy(mean, mean / p) + xlogy(1 - mean, (1 - mean) / (1 - p))
        return float(apart) > level

    low, high = mean, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if far(middle) else (middle, high)
    return high


def unit_losses(outputs: ArrayLike, compressed_outputs: ArrayLike) -> Float[np.ndarray, " units"]:
    r"""The loss of each unit, $\min(1, \lVert Y - \hat Y\rVert_F^2 / \lVert Y\rVert_F^2)$, from
    outputs of any shape (units, ...).

    Raises `ValueError` for arrays that are empty, of integers, not finite, or of different shapes.
    """
    original, compressed = (
        check_array(name, array, "units", "...")
        for name, array in (("outputs", outputs), ("compressed_outputs", compressed_outputs))
    )
    if original.shape != compressed.shape:
        raise ValueError(
            f"`compressed_outputs` must have the shape of `outputs`, {original.shape}; got "
            f"{compressed.shape}."
        )
    halves = (np.asarray(each, float).reshape(len(each), -1) / 2 for each in (original, compressed))
    original, compressed = halves  # whose difference is a number
    return relative_losses(row_norms(original - compressed), row_norms(original))


def row_norms(rows: Float[np.ndarray, "units _numbers"]) -> Float[np.ndarray, " units"]:
    """The norm of each row, of numbers whose squares may leave float64."""
    _, powers = np.frexp(np.max(np.abs(rows), axis=1, initial=0))
    scaled = np.ldexp(rows, -powers[:, None])
    return np.ldexp(np.sqrt(np.sum(scaled**2, axis=1)), powers)


def relative_losses(
    errors: Float[np.ndarray, " units"], norms: Float[np.ndarray, " units"]
) -> Float[np.ndarray, " units"]:
    """The losses of units, from the norms of their errors and of their outputs."""
    positive = norms > 0
    ratios = np.minimum(errors, norms) / np.where(positive, norms, 1)
    return np.where(positive, ratios**2, errors > 0)
