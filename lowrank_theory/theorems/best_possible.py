r"""The best that any rank-r layer can do, with and without the data.

**Claims** (all sure; norms Frobenius; proved in paper_notes/best_possible.md):

- `truncated_svd`: $\min_{\operatorname{rank}Z\le r}\lVert W - Z\rVert_F^2 = \sum_{i>r}s_i(W)^2$,
  attained by $[W]_r$ (Eckart and Young 1936; Mirsky 1960).
- `activation_weighted`: $\min_{\operatorname{rank}Z\le r}\lVert Y - \tilde XZ\rVert_F^2 =
  \lVert(I-P)Y\rVert_F^2 + \sum_{i>r}s_i(PY)^2$, attained by $Z = \tilde X^+[PY]_r$; for $\tilde X =
  X$ and $Y = XW$, by $Z = WV_rV_r^\top$ (reduced-rank regression: Anderson 1951, Izenman 1975).
- `optimality`: no other matrix of rank r does better: the error of a competitor, here alternating
  least squares started at the target, is at least the value above.

Equalities: they hold to rounding on every layer, real ones included.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import after, float64, matmul
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, Setting, Truth
from lowrank_theory.recovery import ActivationWeighted, LowRank, Recovery, TruncatedSVD, recover
from lowrank_theory.theorems._quantities import (
    EPS,
    coarseness,
    column_space,
    frobenius,
    in_double,
    no_bias_hypothesis,
    singular_values,
    stored_resolution,
    tail_norm,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    MISMATCHED,
    SINGULAR,
    UNUSUAL_ACTIVATIONS,
    WELL_POSED,
)
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    LOWER,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)

_REGIMES = {
    **WELL_POSED,
    **SINGULAR,
    **FULL_RANK,
    "ties": Setting(
        **BASE,
        activations=activations.FixedSpectrum(spectra.Flat()),
        target=targets.ApproximateRank(spectra.Flat()),
        noise=noise.Gaussian(0.0),
    ),
    "exactly low rank": Setting(**BASE, noise=noise.Gaussian(0.0)),
}
_WITH_DATA = {
    **_REGIMES,
    **MISMATCHED,
    **UNUSUAL_ACTIVATIONS,
    "serially correlated samples": Setting(**BASE, activations=activations.SerialCorrelation()),
}


def best_error(observed: Observed, rank: int, resolution: float = EPS) -> Float[Array, ""]:
    r"""$\bigl(\lVert(I-P)Y\rVert_F^2 + \sum_{i>r}s_i(PY)^2\bigr)^{1/2}$: the least $\lVert Y -
    \tilde XZ\rVert_F$ of any rank-r layer without bias.

    With a `resolution` coarser than float64, that of rows stored with this machine epsilon: $P$
    then projects on the directions that these resolve, and the least is over layers that use no
    other. Where $Y = \tilde XW$ for the weights at hand, no inverse is taken, all directions are
    used, and $PY = Y$.
    """
    with float64():
        exact = in_double(observed)
        outputs = jnp.asarray(exact.target_outputs)
        if observed.compressed_activations is observed.outputs is observed.bias is None:
            return tail_norm(singular_values(outputs), rank)
        space = column_space(exact.layer_inputs, resolution)
        coordinates = space.coordinates(outputs)
        unattainable = frobenius(outputs - matmul(space.basis, coordinates))
        return jnp.hypot(unattainable, tail_norm(singular_values(coordinates), rank))


class TruncatedSVDIsBest(AbstractStatement):
    r"""$\lVert W - [W]_r\rVert_F = (\sum_{i>r}s_i(W)^2)^{1/2}$."""

    kind = EQUALITY
    needs = Observed
    regimes = _REGIMES
    control = _REGIMES["square"]

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """None: it holds for every matrix."""
        return ()

    def estimate(self, instance: Problem | Layer) -> Recovery:
        """Truncated singular value decomposition of the weights."""
        return recover(instance.observed, instance.rank, TruncatedSVD())

    def broken_estimate(self, instance: Problem | Layer) -> Recovery:
        """The best approximation for the wrong norm, the data-driven one."""
        return recover(instance.observed, instance.rank, ActivationWeighted())

    def formula(self, instance: Problem | Layer, estimate: Recovery) -> Float[Array, ""]:
        """The tail of the singular values of the weights."""
        return tail_norm(
            singular_values(jnp.asarray(instance.observed.weights, float)), instance.rank
        )

    def loss(self, instance: Problem | Layer, estimate: Recovery) -> Float[Array, ""]:
        r"""$\lVert W - Z\rVert_F$."""
        weights = jnp.asarray(instance.observed.weights, float)
        factors = in_double(estimate.factors)
        return frobenius(weights - matmul(factors.left, factors.right))

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F$, in the precision in which the factors are returned."""
        weights = instance.observed.weights
        return coarseness(weights) * frobenius(jnp.asarray(weights, float))


class ActivationWeightedIsBest(AbstractStatement):
    r"""$\lVert Y - \tilde XZ\rVert_F = \bigl(\lVert(I-P)Y\rVert_F^2 +
    \sum_{i>r}s_i(PY)^2\bigr)^{1/2}$ for the data-driven $Z$.
    """

    kind = EQUALITY
    needs = Observed
    regimes = _WITH_DATA
    control = UNUSUAL_ACTIVATIONS["massive directions"]

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """No bias: the affine problem is the same one, centred."""
        return (no_bias_hypothesis(instance),)

    def estimate(self, instance: Problem | Layer) -> Recovery:
        """The data-driven recovery."""
        return recover(instance.observed, instance.rank, ActivationWeighted())

    def broken_estimate(self, instance: Problem | Layer) -> Recovery:
        """The data-agnostic one."""
        return recover(instance.observed, instance.rank, TruncatedSVD())

    def formula(self, instance: Problem | Layer, estimate: Recovery) -> Float[Array, ""]:
        """`best_error`, of layers that use what the stored rows resolve."""
        observed = instance.observed
        return best_error(observed, instance.rank, stored_resolution(observed))

    def loss(self, instance: Problem | Layer, estimate: Recovery) -> Float[Array, ""]:
        r"""$\lVert Y - \tilde XZ\rVert_F$."""
        return _distance(estimate.factors, instance.observed)

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F$, and what $Y = XW$ is computed from, in the precision in which the
        factors are returned.
        """
        return coarseness(instance.observed) * _product_scale(instance.observed)


class Optimality(AbstractStatement):
    r"""$\lVert Y - \tilde XZ\rVert_F \ge \bigl(\lVert(I-P)Y\rVert_F^2 +
    \sum_{i>r}s_i(PY)^2\bigr)^{1/2}$ for every $Z$ of rank r.
    """

    kind = LOWER
    needs = Truth
    regimes = _WITH_DATA
    control = _REGIMES["square"]
    refuted_below = Refuted(1.0, "the recovery itself attains it")

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None: the competitor has rank at most r by construction."""
        return ()

    def estimate(self, instance: Problem) -> LowRank:
        """A competitor: five sweeps of alternating least squares, started at the target's own row
        space.
        """
        inputs, outputs = instance.truth.layer_inputs, instance.observed.target_outputs
        _, _, rows = jnp.linalg.svd(instance.truth.target_weights, full_matrices=False)
        right = rows[: instance.rank]
        inverse = jnp.linalg.pinv(after(right, inputs))

        def sweep(right: Array, _: None) -> tuple[Array, Array]:
            left = matmul(inverse, outputs, jnp.linalg.pinv(right))
            return matmul(jnp.linalg.pinv(matmul(inputs, left)), outputs), left

        right, lefts = jax.lax.scan(sweep, right, None, length=5)
        return LowRank(lefts[-1], right)

    def broken_estimate(self, instance: Problem) -> Recovery:
        """A competitor that cheats by one rank."""
        return recover(instance.observed, instance.rank + 1, ActivationWeighted())

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """`best_error`."""
        return best_error(instance.observed, instance.rank)

    def loss(self, instance: Problem, estimate: LowRank | Recovery) -> Float[Array, ""]:
        r"""$\lVert Y - \tilde XZ\rVert_F$."""
        factors = estimate.factors if isinstance(estimate, Recovery) else estimate
        return _distance(factors, instance.observed)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F$, and what $Y = XW$ is computed from."""
        return _product_scale(instance.observed)


def _distance(factors: LowRank, observed: Observed) -> Float[Array, ""]:
    r"""$\lVert Y - \tilde XZ\rVert_F$, of the numbers as they are stored."""
    exact, found = in_double(observed), in_double(factors)
    return frobenius(exact.target_outputs - matmul(exact.layer_inputs, found.left, found.right))


def _product_scale(observed: Observed) -> Float[Array, ""]:
    """Of the outputs, and of the layers from which they are formed."""
    inputs, outputs = observed.layer_inputs, observed.target_outputs
    formed = column_space(inputs, stored_resolution(observed)).fitted(outputs)
    if observed.weights is not None:
        formed = formed + frobenius(observed.weights)
    return frobenius(outputs) + frobenius(inputs) * formed


class BestPossible(AbstractTheorem):
    """Reduced-rank regression is the best that rank $r$ can do, and its error has a formula."""

    truncated_svd: TruncatedSVDIsBest = TruncatedSVDIsBest()
    activation_weighted: ActivationWeightedIsBest = ActivationWeightedIsBest()
    optimality: Optimality = Optimality()


best_possible = BestPossible()
