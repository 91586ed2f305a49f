r"""What a finite calibration costs, with the exact leading constant.

**Model.** As in `calibration_size`: rows of second moment $C$, weights $W$, $\Sigma = W^\top CW$ of
rank $k$ with eigenvalues $l_1 \ge l_2 \ge \dots$ and a gap $l_r > l_{r+1}$; the layer recovered
from rows whose second moment of the outputs is $\hat\Sigma = \Sigma + D$. Its population loss
$L(\hat M)$ exceeds the optimum $L^* = \sum_{j>r}l_j$. $D_{jk}$ are the entries of $D$ in the
eigenvectors of $\Sigma$; the indices 1 and 2 stand for the blocks of the first $r$ and of the rest.

**Claims** (squared losses; proved in paper_notes/calibration_excess.md):

- `any_rows` (sure, whatever the rows): let $x \ge 0$ be the least with $\lambda_{\min}(x\Sigma_{11}
  + D_{11}) \ge \lambda_{\max}(x\Sigma_{22} + D_{22})$. If $x < 1$, that is if
  $\lambda_{\min}(\hat\Sigma_{11}) > \lambda_{\max}(\hat\Sigma_{22})$, then
  $$L(\hat M) - L^* \le \frac{1}{(1-x)^2}\sum_{j\le r<k}\frac{D_{jk}^2}{l_j-l_k}.$$
  Attained in the limit of small $D_{jk}$. $x$ is at most $(\lambda_{\max}(D_{22}) -
  \lambda_{\min}(D_{11}))_+/(l_r - l_{r+1})$.
- `gaussian` (probability $1-\delta$), $m > r$ i.i.d. rows $N(0, C)$ that $W$ does not depend on:
  with $a_{jk} = l_jl_k/(m(l_j-l_k))$, $j \le r < k$, and $\tau = \ln(4/\delta)$,
  $$L(\hat M) - L^* \le \frac{e_1^2/m}{(1-\eta)^2}\Bigl(\sum a_{jk} + 2\bigl(\tau\sum
  a_{jk}^2\bigr)^{1/2} + 2\tau\max a_{jk}\Bigr),$$
  if $\eta = \bigl((1 - e_-^2/m)l_r + (e_2^2/m - 1)l_{r+1}\bigr)/(l_r - l_{r+1}) < 1$, where $e_1$
  and $e_-$ are the edges of an $m\times r$ and $e_2$ that of an $m\times(k-r)$ Gaussian matrix
  (`gaussian_noise`) at $\delta/4$.

$\sum a_{jk}$ is the exact leading term of the mean (`calibration_size.leading_constant`): for many
rows the bound is that term and its fluctuation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import Number, matmul, relative_rank_cutoff, safe_divide
from lowrank_theory.generators import spectra
from lowrank_theory.problems import Problem
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._calibration import (
    DEVIATING,
    GAPPED,
    RESOLVED,
    CalibrationSetting,
    gap_hypothesis,
    output_spectrum,
    sample_count,
    sample_second_moment,
    trained_weights,
    true_second_moment,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractTheorem,
    Hypothesis,
    Rate,
    Refuted,
)
from lowrank_theory.theorems.calibration_size import (
    AbstractExcess,
    KnownOptimum,
    gaussian_rows_hypotheses,
)
from lowrank_theory.theorems.gaussian_noise import lower_edge, upper_edge

_HALVINGS = 45  # of the interval that holds x
_ANY = {
    **RESOLVED,
    "few rows": CalibrationSetting(60, 8, 2, spectra.PowerLaw(2.0)),
    "three spikes": GAPPED["three spikes"],
    "kept whole": CalibrationSetting(60, 8, 8, spectra.PowerLaw(1.0)),
}
_GAUSSIAN = {
    "many rows": DEVIATING["many rows"],
    "steep spectrum": CalibrationSetting(2_000, 8, 2, spectra.PowerLaw(2.0)),
    "three spikes": CalibrationSetting(400, 8, 3, spectra.Spiked(3, 8.0)),
    "one spike": CalibrationSetting(200, 8, 1, spectra.Spiked(1, 8.0)),
    "exponential decay": CalibrationSetting(4_000, 8, 3, spectra.Exponential(0.4)),
    "low rank": CalibrationSetting(400, 8, 3, spectra.Given((3.0, 2.0, 1.0, 0.1))),
}


def blocks(
    covariance: Float[Array, "outputs outputs"], deviation: Float[Array, "outputs outputs"]
) -> tuple[Float[Array, " outputs"], Float[Array, "outputs outputs"]]:
    r"""The eigenvalues of $\Sigma$, largest first, and $D$ in its eigenvectors."""
    values, vectors = jnp.linalg.eigh(covariance)
    vectors = vectors[:, ::-1]
    return jnp.maximum(values[::-1], 0), matmul(vectors.T, deviation, vectors)


def order_share(
    eigenvalues: Float[Array, " outputs"], deviation: Float[Array, "outputs outputs"], rank: int
) -> Float[Array, ""]:
    r"""The least $x \ge 0$ with $\lambda_{\min}(x\Sigma_{11} + D_{11}) \ge
    \lambda_{\max}(x\Sigma_{22} + D_{22})$, or one where it is not below one, for $D$ in the
    eigenvectors of $\Sigma$; call it inside `float64`.

    By bisection, from above; with the derivative of the two eigenvalues where they meet.
    """
    if rank >= eigenvalues.size:
        return jnp.zeros(())
    kept, dropped = eigenvalues[:rank], eigenvalues[rank:]
    first, second = deviation[:rank, :rank], deviation[rank:, rank:]
    lower, upper = (jax.lax.stop_gradient(pair) for pair in ((kept, first), (dropped, second)))

    def block(part: tuple[Array, Array], x: Array) -> Array:
        return jnp.diag(x * part[0]) + part[1]

    def ordered(x: Array) -> Array:
        least, most = (jnp.linalg.eigvalsh(block(part, x)) for part in (lower, upper))
        return least[0] >= most[-1]

    def halved(_: Array | int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        enough = ordered(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    _, least = jax.lax.fori_loop(0, _HALVINGS, halved, (jnp.zeros(()), jnp.ones(())))
    u = jnp.linalg.eigh(block(lower, least))[1][:, 0]
    w = jnp.linalg.eigh(block(upper, least))[1][:, -1]
    missing = w @ matmul(second, w) - u @ matmul(first, u)
    root = safe_divide(missing, kept @ u**2 - dropped @ w**2)
    share = least + (root - jax.lax.stop_gradient(root))
    return jnp.where(ordered(jnp.zeros(())), 0.0, share)


def first_order_loss(
    eigenvalues: Float[Array, " outputs"], deviation: Float[Array, "outputs outputs"], rank: int
) -> Float[Array, ""]:
    r"""$\sum_{j\le r<k}D_{jk}^2/(l_j-l_k)$, for $D$ in the eigenvectors of $\Sigma$."""
    gaps = eigenvalues[:rank, None] - eigenvalues[None, rank:]
    return jnp.sum(safe_divide(deviation[:rank, rank:] ** 2, gaps))


def likely_excess(
    eigenvalues: Float[Array, " outputs"], rank: int, samples: Number, failure_probability: Number
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""The bound of `gaussian`, and $\eta$, from the eigenvalues of $\Sigma$; call it inside
    `float64`. Meaningful where $\eta < 1$ and $m > r$.
    """
    quarter = failure_probability / 4
    kept, dropped = eigenvalues[:rank], eigenvalues[rank:]
    cutoff = relative_rank_cutoff((eigenvalues.size,)) * eigenvalues[0]
    dimensions = jnp.sum(dropped > cutoff).astype(float)
    largest = upper_edge(samples, rank, quarter) ** 2 / samples
    least = jnp.maximum(lower_edge(samples, rank, quarter), 0) ** 2 / samples
    overshoot = upper_edge(samples, dimensions, quarter) ** 2 / samples - 1
    next_value = jnp.max(dropped, initial=0.0)
    eta = safe_divide((1 - least) * kept[-1] + overshoot * next_value, kept[-1] - next_value)
    gaps = jnp.asarray(samples) * (kept[:, None] - dropped)
    weights = safe_divide(kept[:, None] * dropped, gaps)
    tau = -jnp.log(quarter)
    spread = 2 * jnp.sqrt(tau * jnp.sum(weights**2)) + 2 * tau * jnp.max(weights, initial=0.0)
    return largest * safe_divide(jnp.sum(weights) + spread, (1 - eta) ** 2), eta


class AnyRows(AbstractExcess):
    r"""$L(\hat M) - L^* \le (1-x)^{-2}\sum_{j\le r<k}D_{jk}^2/(l_j-l_k)$ for $x < 1$, whatever the
    rows. Squared.
    """

    kind = UPPER
    regimes = _ANY
    control = RESOLVED["many rows"]
    adversary = KnownOptimum()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """A gap, and blocks of the sample that are in order."""
        share = order_share(*_parts(instance), instance.rank)
        above = jnp.where(share < 1, 1 - share, -1.0)
        name = "the sample keeps the order of the eigenvalues of the two blocks"
        gap = gap_hypothesis(output_spectrum(instance), instance.rank)
        return (gap, Hypothesis(name, above))

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$(1-x)^{-2}\sum_{j\le r<k}D_{jk}^2/(l_j-l_k)$."""
        parts = _parts(instance)
        share = order_share(*parts, instance.rank)
        return safe_divide(first_order_loss(*parts, instance.rank), (1 - share) ** 2)


def _parts(problem: Problem) -> tuple[Array, Array]:
    weights, true = trained_weights(problem), true_second_moment(problem)
    difference = sample_second_moment(problem) - true
    return blocks(matmul(weights.T, true, weights), matmul(weights.T, difference, weights))


class Gaussian(AbstractExcess):
    r"""$L(\hat M) - L^* \le \frac{e_1^2/m}{(1-\eta)^2}\bigl(\sum a_{jk} + 2(\tau\sum
    a_{jk}^2)^{1/2} + 2\tau\max a_{jk}\bigr)$ for $\eta < 1$ and Gaussian rows, with probability
    $1-\delta$. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN
    control = DEVIATING["many rows"]
    refuted_below = Refuted(1.0, "many rows and outputs: the leading term of the mean")
    rates = (
        Rate(
            "samples",
            {m: GAPPED["one spike"].enlarged(m // 400) for m in (6400, 25600, 102400, 409600)},
            -1.0,
            None,
        ),
    )

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Gaussian rows that the weights do not know, a gap, and enough rows."""
        samples, eigenvalues = sample_count(instance), output_spectrum(instance)
        _, eta = likely_excess(eigenvalues, instance.rank, samples, self.failure_probability)
        return (
            *gaussian_rows_hypotheses(instance),
            gap_hypothesis(eigenvalues, instance.rank),
            Hypothesis("there are more rows than the rank", samples - instance.rank - 1),
            Hypothesis("there are enough rows for the gap", jnp.where(eta < 1, 1 - eta, -1.0)),
        )

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """`likely_excess`."""
        samples, eigenvalues = sample_count(instance), output_spectrum(instance)
        return likely_excess(eigenvalues, instance.rank, samples, self.failure_probability)[0]


class CalibrationExcess(AbstractTheorem):
    """What $m$ rows lose beyond the optimum is at most its first-order term, with the exact leading
    constant, over $(1-x)^2$, where $x$ tells how near the rows come to exchanging directions.
    """

    any_rows: AnyRows = AnyRows()
    gaussian: Gaussian = Gaussian()


calibration_excess = CalibrationExcess()
