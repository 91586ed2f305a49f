"""Entries for codes, and what they lose on rows to come: the part of `look_up` that is a law."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    Number,
    check_count,
    check_positive,
    check_same,
    safe_divide,
    settle,
)
from lowrank_theory._random import integers, normal, split
from lowrank_theory.theorems._byte_tables import check_codes
from lowrank_theory.theorems._quantities import law_hypothesis
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    Hypothesis,
    Refuted,
)


def indicators(
    codes: Integer[AnyArray, "samples codebooks"], count: int
) -> Float[Array, "samples codes"]:
    """$G$, of so many codes in each codebook."""
    one = jax.nn.one_hot(jnp.asarray(codes), count, dtype=float)
    return one.reshape(one.shape[0], -1)


def ridge_entries(
    design: Float[Array, "samples codes"], wanted: Float[Array, "samples outputs"], ridge: Any
) -> Float[Array, "codes outputs"]:
    r"""$T_\lambda$."""
    gram = matmul(design.T, design) + ridge * jnp.eye(design.shape[1])
    return jax.scipy.linalg.solve(gram, matmul(design.T, wanted), assume_a="pos")


class CodedLaw(eqx.Module):
    r"""A law of rows, all of which are known and equally likely, and the rows that were drawn.

    - `outputs` $y$ (rows,): what each row should give, $\lvert y\rvert \le Y$ = `largest`;
    - `codings` (codings, rows, codebooks): the codes of each row by each of several encoders,
      integers from 0 to `count` - 1;
    - `seen` (samples,): the places of the rows that were drawn, with replacement;
    - `independent`: whether they were drawn independently, and the encoders before them;
    - `limit` $b$, above which errors count as $b$; `ridge` $\lambda$, in rows.

    Raises `ValueError` for arrays that do not fit, codes and rows that there are not, and a ridge
    that is not positive.
    """

    outputs: Float[AnyArray, " rows"]
    codings: Integer[AnyArray, "codings rows codebooks"]
    seen: Integer[AnyArray, " samples"]
    largest: Float[AnyArray, ""]
    limit: Float[AnyArray, ""]
    independent: Bool[AnyArray, ""]
    ridge: Float[AnyArray, ""] | float = 1.0
    count: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        check_same("codings", self.codings.shape[1], "outputs", self.outputs.shape[0], "rows")
        check_codes(self.codings.reshape(-1, self.codings.shape[2]), self.count)
        check_codes(self.seen[:, None], self.outputs.shape[0])
        if isinstance(self.ridge, float | int):
            settle(self, "ridge", check_positive)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.codings.shape, self.seen.shape[0], self.count)

    def mean_errors(
        self, found: Float[Array, " rows"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        r"""$\min(\lvert y - f\rvert, b)$ in the mean over rows that were seen, and over the law."""
        errors = jnp.minimum(jnp.abs(jnp.asarray(self.outputs, float) - found), self.limit)
        return jnp.mean(errors[jnp.asarray(self.seen)]), jnp.mean(errors)


class CodedLawSetting(eqx.Module):
    """Gaussian rows, outputs that are linear in them beside noise, and encoders that compare random
    inputs with random thresholds. Errors count up to the largest output.
    """

    samples: int
    codings: int
    codebooks: int = 2
    levels: int = 2
    ridge: float = 1.0
    rows: int = 1000
    inputs: int = 8
    noise: float = 0.3

    def __check_init__(self) -> None:
        for name in ("samples", "codings", "codebooks", "levels", "rows", "inputs"):
            settle(self, name, check_count, 1)
        settle(self, "ridge", check_positive)
        settle(self, "noise", check_positive, zero=True)

    @of_either_key
    def draw(self, *, key: Key) -> CodedLaw:
        """A random law and random rows of it, in float64."""
        xp = namespace(key)
        row_key, weight_key, noise_key, place_key, limit_key, seen_key = split(key, 6)
        shape = self.codings, self.codebooks, self.levels
        rows = normal(row_key, (self.rows, self.inputs))
        outputs = matmul(rows, normal(weight_key, (self.inputs,)))
        outputs = outputs + self.noise * normal(noise_key, (self.rows,))
        places = integers(place_key, shape, self.inputs)
        right = rows.T[places] >= 0.7 * normal(limit_key, shape)[..., None]
        codings = xp.sum(right * 2 ** np.arange(self.levels)[:, None], axis=-2)
        largest = xp.asarray(xp.max(xp.abs(outputs)))
        return CodedLaw(
            outputs,
            xp.swapaxes(codings, 1, 2),
            integers(seen_key, (self.samples,), self.rows),
            largest,
            largest,
            xp.asarray(True),
            self.ridge,
            2**self.levels,
        )


class FittedCodes(eqx.Module):
    r"""The outputs $f$ of all rows, by entries $t$ of the `size` $\lVert t\rVert$."""

    outputs: Float[Array, " rows"]
    size: Float[Array, ""]


def uniform_deviation(
    size: Number,
    largest: Number,
    limit: Number,
    codings: int,
    codebooks: int,
    samples: Number,
    failure_probability: Number,
) -> Float[Array, ""]:
    r"""$2r\sqrt{C/m} + b\sqrt{\ln(N(j+1)(j+2)/\delta)/(2m)}$, $r = 2^jY \ge \lVert t\rVert$."""
    least, rows = jnp.asarray(largest, float), jnp.asarray(samples, float)
    power = jnp.maximum(jnp.ceil(jnp.log2(safe_divide(jnp.asarray(size, float), least))), 0)
    choices = codings * (power + 1) * (power + 2) / jnp.asarray(failure_probability)
    entries = 2 * least * 2**power * jnp.sqrt(codebooks / rows)
    return entries + jnp.asarray(limit) * jnp.sqrt(jnp.log(choices) / (2 * rows))


_LAWS = {
    "few encoders": CodedLawSetting(300, 4),
    "many encoders": CodedLawSetting(100, 60),
    "many codebooks": CodedLawSetting(300, 4, codebooks=8),
    "many rows": CodedLawSetting(500, 4),
    "fewer rows than codes": CodedLawSetting(10, 4, levels=4),
    "large ridge": CodedLawSetting(300, 4, ridge=100.0),
    "small ridge": CodedLawSetting(300, 4, ridge=1e-3),
}


class RowsToCome(AbstractStatement):
    r"""$\mathbb E\min(\lvert y - f\rvert, b) \le$ the mean over the rows seen $+\; 2r\sqrt{C/m} +
    b\sqrt{\ln(N(j+1)(j+2)/\delta)/(2m)}$, $r = 2^jY \ge \lVert t\rVert$ with the least $j \ge 0$,
    for all entries $t$ of all $N$ encoders at once.
    """

    kind = UPPER_WITH_PROBABILITY
    needs = CodedLaw
    regimes = _LAWS
    control = _LAWS["many rows"]
    refuted_below = Refuted(1.0, "many rows: both sides tend to the mean")

    def hypotheses(self, instance: CodedLaw) -> tuple[Hypothesis, ...]:
        """Independent rows, and outputs of bounded size."""
        largest, limit = jnp.asarray(instance.largest, float), jnp.asarray(instance.limit, float)
        beyond = largest - jnp.max(jnp.abs(jnp.asarray(instance.outputs, float)))
        return (
            law_hypothesis(
                "the rows are independent, and unseen by encoders", instance.independent
            ),
            Hypothesis("no output is larger than said", beyond),
            Hypothesis("errors count up to a positive limit", limit - 1e-300),
        )

    def estimate(self, instance: CodedLaw) -> FittedCodes:
        """Ridge entries of the encoder with the smallest squared error on the rows that were
        seen.
        """
        outputs, seen = jnp.asarray(instance.outputs, float), jnp.asarray(instance.seen)

        def fitted(codes: Int[Array, "rows codebooks"]) -> tuple[FittedCodes, Float[Array, ""]]:
            design = indicators(codes, instance.count)
            entries = ridge_entries(design[seen], outputs[seen, None], instance.ridge)
            found = matmul(design, entries)[:, 0]
            made = FittedCodes(found, jnp.sqrt(jnp.sum(entries**2)))
            return made, jnp.sum((outputs - found)[seen] ** 2)

        made, squares = jax.lax.map(fitted, jnp.asarray(instance.codings))
        best = jnp.argmin(squares)
        return jax.tree.map(lambda leaf: leaf[best], made)

    def broken_estimate(self, instance: CodedLaw) -> FittedCodes:
        """What knows the rows that were seen by heart, and nothing else."""
        outputs, seen = jnp.asarray(instance.outputs, float), jnp.asarray(instance.seen)
        wrong = outputs + instance.limit
        return FittedCodes(wrong.at[seen].set(outputs[seen]), jnp.asarray(instance.largest, float))

    def formula(self, instance: CodedLaw, estimate: FittedCodes) -> Float[Array, ""]:
        """The mean over the rows that were seen, and the deviation."""
        codings, _, codebooks = instance.codings.shape
        sizes = codings, codebooks, instance.seen.shape[0]
        largest, limit = jnp.asarray(instance.largest, float), jnp.asarray(instance.limit, float)
        deviation = uniform_deviation(
            estimate.size, largest, limit, *sizes, self.failure_probability
        )
        return instance.mean_errors(estimate.outputs)[0] + deviation

    def loss(self, instance: CodedLaw, estimate: FittedCodes) -> Float[Array, ""]:
        """The mean over the law."""
        return instance.mean_errors(estimate.outputs)[1]

    def magnitude(self, instance: CodedLaw) -> Float[Array, ""]:
        r"""$b + Y$."""
        return jnp.asarray(instance.limit, float) + jnp.asarray(instance.largest, float)
