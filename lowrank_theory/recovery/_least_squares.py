"""The least-squares layer of some rows, and the best layers of low rank, its truncations."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import (
    after,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory._scale import equilibrated, times_power
from lowrank_theory._subspaces import (
    all_right_vectors,
    leading_right_vectors,
    pseudo_inverse,
    tail_sums,
)
from lowrank_theory.recovery._returned import AbstractSensitivity, Affine, Fit, Perturbation


class RowProblem(eqx.Module):
    r"""A problem from rows, at scale one: $\tilde X$ and $Y$ (centred, for an affine layer), and
    the least-squares layer where it is known.

    `column_norms` of the inputs, and the `outputs_scale`, are those on which rounding acts, even
    where a mean was taken out; outputs are $2^p$ and weights $2^q$ times those at scale one.
    """

    layer_inputs: Float[Array, "samples inputs"]
    outputs: Float[Array, "samples outputs"]
    solution: Float[Array, "inputs outputs"] | None
    column_norms: Float[Array, " inputs"]
    outputs_scale: Float[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None


class RowSensitivity(AbstractSensitivity):
    r"""By $\tilde X$ (the identity where it is none) and the attainable outputs $F$."""

    inputs: Float[Array, "samples inputs"] | None
    outputs: Float[Array, "samples outputs"]

    def perturbation(self, change: Float[Array, "inputs rank"]) -> Perturbation:
        r"""By this $\mathrm dL$."""
        moved = change if self.inputs is None else matmul(self.inputs, change)
        return Perturbation(matmul(self.outputs.T, moved), matmul(moved.T, moved))


class LeastSquares(eqx.Module):
    r"""The least-squares layer $B$, as its `solution`, and the `attainable` outputs $\tilde XB$: of
    any rank, at scale one. Layers of low rank are $BV_rV_r^\top$ with the leading right singular
    vectors of the attainable outputs.

    - `unattainable`: the squared norm of the rest of the outputs;
    - `dropped`: the squared norm of that part of it which directions of $\tilde X$ give that were
      too weak to be used;
    - `rounding`, `target_norm`, `inputs_norm`, `power`, `left_power`, `affine`: as in `Fit`.
    """

    solution: Float[Array, "inputs outputs"]
    attainable: Float[Array, "samples outputs"]
    unattainable: Float[Array, ""]
    dropped: Float[Array, ""]
    rounding: Float[Array, ""]
    target_norm: Float[Array, ""]
    inputs_norm: Float[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None
    sensitivity: RowSensitivity

    def of_rank(self, rank: int) -> Fit:
        """The best layer of this rank."""
        vectors, eigenvalues = leading_right_vectors(self.attainable, rank)
        return self._truncated(vectors, eigenvalues, jnp.asarray(rank))

    def of_every_rank(self) -> Fit:
        """The best layers of all ranks."""
        vectors, eigenvalues = all_right_vectors(self.attainable)
        full = min(self.solution.shape)
        return self._truncated(vectors[:, :full], eigenvalues, jnp.arange(full + 1))

    def _truncated(
        self,
        vectors: Float[Array, "outputs width"],
        eigenvalues: Float[Array, " outputs"],
        ranks: Int[Array, "*ranks"],
    ) -> Fit:
        optimum = self.unattainable + tail_sums(eigenvalues, ranks)
        return Fit(
            left=matmul(self.solution, vectors),
            right=vectors.T,
            eigenvalues=eigenvalues[: vectors.shape[1]],
            optimum=optimum,
            lower=jnp.maximum(optimum - self.dropped, 0),
            upper=optimum,
            rounding=self.rounding,
            target_norm=self.target_norm,
            inputs_norm=self.inputs_norm,
            power=self.power,
            left_power=self.left_power,
            affine=self.affine,
            sensitivity=self.sensitivity,
        )


def least_squares(
    problem: RowProblem, resolution: float = float(np.finfo(np.float64).eps)
) -> LeastSquares:
    """By the pseudo-inverse, with the rank cut-off of this resolution, where the solution is not
    known.
    """
    layer_inputs, outputs, solution = problem.layer_inputs, problem.outputs, problem.solution
    attainable, outputs_scale, dropped = outputs, problem.outputs_scale, jnp.asarray(0.0)
    if solution is None:
        layer_inputs = after(outputs, layer_inputs)  # whose decomposition may make the outputs
        cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
        scaled_inputs, powers = equilibrated(layer_inputs)
        inverse, weak = pseudo_inverse(scaled_inputs, cutoff)
        # Weak directions that the layer does without might have served the best one.
        dropped = jnp.sum(matmul(weak.T, outputs) ** 2)
        solution = matmul(inverse, outputs)
        # Once more for what is left: then only that is rounded on the scale of the inverse.
        residual = outputs - matmul(scaled_inputs, solution)
        solution = solution + matmul(inverse, residual)
        attainable = matmul(scaled_inputs, solution)
        amplified = jnp.linalg.norm(inverse) * safe_sqrt(jnp.sum(residual**2))
        scaled_norm = jnp.linalg.norm(times_power(problem.column_norms, -powers))
        outputs_scale += scaled_norm * (jnp.linalg.norm(solution) + amplified)
        solution = times_power(solution, -powers[:, None])
    return LeastSquares(
        solution=solution,
        attainable=attainable,
        unattainable=jnp.sum((outputs - attainable) ** 2),
        dropped=dropped,
        rounding=2 * rounding_allowance(outputs_scale, *layer_inputs.shape, outputs.shape[1]),
        target_norm=safe_sqrt(jnp.sum(outputs**2)),
        inputs_norm=jnp.linalg.norm(problem.column_norms),
        power=problem.power,
        left_power=problem.left_power,
        affine=problem.affine,
        sensitivity=RowSensitivity(layer_inputs, attainable),
    )


def column_norms(matrix: Float[Array, "rows columns"]) -> Float[Array, " columns"]:
    return safe_sqrt(jnp.sum(matrix**2, axis=0))
