r"""What equalised channels and kept means do for weights that are rounded without data.

**Model.** Two layers $A$ (N, C) and $B$ (C, K) are joined by a rectifier, $Y = \max(XA, 0)B$, and
$t \gt 0$ are factors of the channels between them. With $p_i = \max|A_{:i}|$, $q_i = \max|B_{i:}|$,
$$P(t) = \max_ip_it_i,\qquad Q(t) = \max_iq_i/t_i,\qquad M = \max_i\sqrt{p_iq_i}$$
are the ranges of $A\operatorname{diag}t$ and $\operatorname{diag}(t)^{-1}B$, and what is least of
both. $\hat A$ and $\hat B$ are these two, each on one symmetric grid of b bits for the whole matrix
that reaches its largest weight, with $L = 2^{b-1} - 1$ levels above zero. Equalisation (Nagel, van
Baalen, Blankevoort and Welling 2019) takes $t_i = \sqrt{q_i/p_i}$.

**Claims** (proved in paper_notes/equalisation.md):

- `same_function` (sure, equality): $\max(XA\operatorname{diag}t, 0)\operatorname{diag}(t)^{-1}B =
  Y$; stated of the norms of both.
- `ranges` (sure): $P(t)\,Q(t) \ge M^2$ for all factors.
- `outputs` (sure): no entry of $\max(X\hat A, 0)\hat B$ is further from that of $Y$ than
  $$\frac{\lVert X\rVert_\infty}{2L}\sum_i\Bigl(P\hat q_i + Q\hat p_i - \frac{PQ}{2L}\Bigr),\quad
  \hat p_i = \min\Bigl(p_it_i + \frac P{2L}, P\Bigr),\quad \hat q_i = \min\Bigl(\frac{q_i}{t_i} +
  \frac Q{2L}, Q\Bigr),$$
  $\lVert X\rVert_\infty$ the largest sum of sizes of a row.
- `best_factors` (sure): that is at most $\frac{\lVert X\rVert_\infty}{2L}S(t)$, and for all factors
  $$S(t) = P\sum_i\frac{q_i}{t_i} + Q\sum_ip_it_i + \frac C{2L}PQ \ge 2M\sum_i\sqrt{p_iq_i} +
  \frac C{2L}M^2.$$
- `equalised` (sure, equality): the factors $\sqrt{q_i/p_i}$ attain it, with $P = Q = M$.

Where channels are normal before the rectifier, with means $\beta$ and deviations $\gamma$ that
batch normalisation has kept, with $\zeta = \beta/\gamma$ and $m$ samples $x = \max(z, 0)$:

- `rectified_mean` (in expectation, equality): $m_1 = \mathbb Ex = \beta\Phi(\zeta) +
  \gamma\varphi(\zeta)$.
- `rectified_variance` (in expectation, equality): $v = \operatorname{Var}x = (\beta^2 +
  \gamma^2)\Phi(\zeta) + \beta\gamma\varphi(\zeta) - m_1^2$.
- `any_shift` (sure, equality): weights changed by $E$ and outputs shifted by $d$ move the outputs
  by $\frac1m\lVert XE + \mathbf 1d\rVert_F^2 = \frac1m\lVert(X - \mathbf 1\bar x)E\rVert_F^2 +
  \lVert\bar xE + d\rVert^2$: least for $d = -\bar xE$.
- `kept_mean` (in expectation, equality): of independent channels, with $d = -m_1E$, by
  $\sum_jv_j\lVert E_{j:}\rVert^2$; any other shift adds $\lVert m_1E + d\rVert^2$.

`ranges` and `best_factors` are attained by equalised channels, `outputs` by weights that all lie
half way between two levels and are rounded up.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray
from lowrank_theory.theorems._joined import (
    JOINED,
    FreeFactors,
    JoinedLayers,
    KnownLevels,
    Layers,
)
from lowrank_theory.theorems._normal_channels import (
    AnyShift,
    KeptMean,
    RectifiedMean,
    RectifiedVariance,
)
from lowrank_theory.theorems._quantities import frobenius
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    LOWER,
    UPPER,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class AbstractJoined(AbstractStatement):
    """A statement about two layers and the channels between them."""

    needs = JoinedLayers
    regimes = JOINED
    control = JOINED["equalised"]

    def hypotheses(self, instance: JoinedLayers) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def magnitude(self, instance: JoinedLayers) -> Float[Array, ""]:
        r"""$\lVert X\rVert_\infty CPQ$, the largest output that such ranges allow."""
        channels = instance.factors.shape[0]
        return instance.seen() * channels * _product(instance)


class SameFunction(AbstractJoined):
    r"""$\lVert\max(XA\operatorname{diag}t, 0)\operatorname{diag}(t)^{-1}B\rVert_F = \lVert\max(XA,
    0)B\rVert_F$. In the units of the outputs.
    """

    kind = EQUALITY

    def estimate(self, instance: JoinedLayers) -> Layers:
        """Both layers, scaled."""
        return instance.scaled()

    def broken_estimate(self, instance: JoinedLayers) -> Layers:
        """The first layer scaled, the second as it was."""
        return instance.scaled()[0], jnp.asarray(instance.second, float)

    def formula(self, instance: JoinedLayers, estimate: Layers) -> Float[Array, ""]:
        r"""$\lVert\max(XA, 0)B\rVert_F$."""
        return frobenius(_exact_outputs(instance))

    def loss(self, instance: JoinedLayers, estimate: Layers) -> Float[Array, ""]:
        """The same of the scaled layers."""
        return frobenius(instance.outputs(estimate))


class Outputs(AbstractJoined):
    r"""$\max|\max(X\hat A, 0)\hat B - Y| \le \frac{\lVert X\rVert_\infty}{2L}\sum_i(P\hat q_i +
    Q\hat p_i - \frac{PQ}{2L})$. In the units of the outputs.
    """

    kind = UPPER
    adversary = KnownLevels()
    sharp = True

    def hypotheses(self, instance: JoinedLayers) -> tuple[Hypothesis, ...]:
        """Two bits or more."""
        return (instance.two_bits(),)

    def estimate(self, instance: JoinedLayers) -> Layers:
        r"""$\hat A$ and $\hat B$."""
        return instance.rounded()

    def broken_estimate(self, instance: JoinedLayers) -> Layers:
        """Levels ten times as far from each other."""
        first, second = instance.rounded()
        return 10 * first, 10 * second

    def formula(self, instance: JoinedLayers, estimate: Layers) -> Float[Array, ""]:
        r"""$\frac{\lVert X\rVert_\infty}{2L}\sum_i(P\hat q_i + Q\hat p_i - \frac{PQ}{2L})$."""
        first, second = instance.scaled_ranges(instance.factors)
        most, half = (jnp.max(first), jnp.max(second)), 1 / (2 * instance.levels())
        first = jnp.minimum(first + half * most[0], most[0])
        second = jnp.minimum(second + half * most[1], most[1])
        each = most[0] * second + most[1] * first - half * most[0] * most[1]
        return instance.seen() * half * jnp.sum(each)

    def loss(self, instance: JoinedLayers, estimate: Layers) -> Float[Array, ""]:
        r"""$\max|\max(X\hat A, 0)\hat B - Y|$."""
        return jnp.max(jnp.abs(instance.outputs(estimate) - _exact_outputs(instance)))


class AbstractFactors(AbstractJoined):
    """A bound for all factors, attained by those that equalise; in the units of both weights."""

    kind = LOWER
    adversary = FreeFactors()
    sharp = True

    def broken_estimate(self, instance: JoinedLayers) -> Float[Array, ""]:
        """A half of it."""
        return self.estimate(instance) / 2

    def loss(self, instance: JoinedLayers, estimate: Array) -> Float[Array, ""]:
        """What the factors give."""
        return estimate

    def magnitude(self, instance: JoinedLayers) -> Float[Array, ""]:
        """$CPQ$."""
        return instance.factors.shape[0] * _product(instance)


class Ranges(AbstractFactors):
    r"""$P(t)\,Q(t) \ge \max_ip_iq_i$."""

    def estimate(self, instance: JoinedLayers) -> Float[Array, ""]:
        r"""$P(t)\,Q(t)$."""
        return _product(instance)

    def formula(self, instance: JoinedLayers, estimate: Array) -> Float[Array, ""]:
        r"""$\max_ip_iq_i$."""
        first, second = instance.ranges()
        return jnp.max(first * second)


class BestFactors(AbstractFactors):
    r"""$S(t) \ge 2M\sum_i\sqrt{p_iq_i} + \frac C{2L}M^2$."""

    def hypotheses(self, instance: JoinedLayers) -> tuple[Hypothesis, ...]:
        """Two bits or more."""
        return (instance.two_bits(),)

    def estimate(self, instance: JoinedLayers) -> Float[Array, ""]:
        """$S(t)$."""
        return worst_case(instance, instance.factors)

    def formula(self, instance: JoinedLayers, estimate: Array) -> Float[Array, ""]:
        r"""$2M\sum_i\sqrt{p_iq_i} + \frac C{2L}M^2$."""
        return _least(instance)


class Equalised(AbstractJoined):
    r"""$S(t) = 2M\sum_i\sqrt{p_iq_i} + \frac C{2L}M^2$ for $t_i = \sqrt{q_i/p_i}$. In the units of
    both weights.
    """

    kind = EQUALITY
    control = JOINED["as they are"]

    def hypotheses(self, instance: JoinedLayers) -> tuple[Hypothesis, ...]:
        """Two bits or more, and no channel of zeros."""
        return (instance.two_bits(), instance.live())

    def estimate(self, instance: JoinedLayers) -> Float[Array, " channels"]:
        r"""$\sqrt{q_i/p_i}$."""
        return instance.equalising()

    def broken_estimate(self, instance: JoinedLayers) -> Float[Array, " channels"]:
        r"""Their inverses, $\sqrt{p_i/q_i}$."""
        return 1 / instance.equalising()

    def formula(self, instance: JoinedLayers, estimate: Array) -> Float[Array, ""]:
        r"""$2M\sum_i\sqrt{p_iq_i} + \frac C{2L}M^2$."""
        return _least(instance)

    def loss(self, instance: JoinedLayers, estimate: Array) -> Float[Array, ""]:
        """$S(t)$."""
        return worst_case(instance, estimate)

    def magnitude(self, instance: JoinedLayers) -> Float[Array, ""]:
        """$CM^2$."""
        first, second = instance.ranges()
        return len(first) * jnp.max(first * second)


def worst_case(layers: JoinedLayers, factors: AnyArray) -> Float[Array, ""]:
    r"""$S(t) = P\sum_iq_i/t_i + Q\sum_ip_it_i + \frac C{2L}PQ$."""
    first, second = layers.scaled_ranges(factors)
    range_first, range_second = jnp.max(first), jnp.max(second)
    both = len(first) / (2 * layers.levels()) * range_first * range_second
    return range_first * jnp.sum(second) + range_second * jnp.sum(first) + both


def _least(layers: JoinedLayers) -> Float[Array, ""]:
    first, second = layers.ranges()
    roots = jnp.sqrt(first) * jnp.sqrt(second)
    most = jnp.max(roots)
    return 2 * most * jnp.sum(roots) + len(first) / (2 * layers.levels()) * most**2


def _product(layers: JoinedLayers) -> Float[Array, ""]:
    first, second = layers.scaled_ranges(layers.factors)
    return jnp.max(first) * jnp.max(second)


def _exact_outputs(layers: JoinedLayers) -> Float[Array, "samples outputs"]:
    first, second = (jnp.asarray(each, float) for each in (layers.first, layers.second))
    return layers.outputs((first, second))


class Equalisation(AbstractTheorem):
    r"""Channels between two rectified layers may be scaled; whatever the factors, the ranges of
    both have a product of at least $\max_ip_iq_i$, which equalised ones attain, and with it the
    least worst case of the outputs once both layers are rounded. Of normal channels, the moments
    behind a rectifier are known, and with them the shift that keeps the mean of the outputs.
    """

    same_function: SameFunction = SameFunction()
    ranges: Ranges = Ranges()
    outputs: Outputs = Outputs()
    best_factors: BestFactors = BestFactors()
    equalised: Equalised = Equalised()
    rectified_mean: RectifiedMean = RectifiedMean()
    rectified_variance: RectifiedVariance = RectifiedVariance()
    any_shift: AnyShift = AnyShift()
    kept_mean: KeptMean = KeptMean()


equalisation = Equalisation()
