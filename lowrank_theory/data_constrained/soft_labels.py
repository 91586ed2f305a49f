r"""What a teacher says of rows without labels, and how far a student is from saying the same.

Logits $t$ of the teacher and $s$ of the student are probabilities at a temperature $\tau$, $p =
\operatorname{softmax}(t/\tau)$ and $q = \operatorname{softmax}(s/\tau)$. The $p$ are soft labels.
Without true ones, the divergence of $q$ from $p$ and the share of rows on which both decide alike
are all there is to choose a student by.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lowrank_theory._numerics import AnyArray, check_positive

Function = Callable[[Any, Any], Any]
Network = tuple[Function, Any]
"""`(function, parameters)`; logits (..., classes) of a batch are `function(parameters, batch)`."""

_NEAR = 1.0  # ratios below e times: there the exponential series cancels


def kl_divergence(
    teacher_logits: Float[AnyArray, "*rows classes"],
    student_logits: Float[AnyArray, "*rows classes"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*rows"]:
    r"""$\tau^2\,\mathrm{KL}(p\,\Vert\,q)$ of each row, in nats at $\tau = 1$.

    $$\mathrm{KL}(p\,\Vert\,q) = \sum_cp_c\ln\frac{p_c}{q_c} = \sum_cp_c\,h\Bigl(\ln\frac{p_c}{q_c}
    \Bigr),\qquad h(r) = r - 1 + e^{-r} \ge 0,$$

    since both sum to one. The last form is computed, in which no term is negative and nothing
    cancels where $p \approx q$. It is zero if and only if the logits differ by a constant; $q_c =
    0 \lt p_c$ makes it infinite. It is the cross-entropy with soft labels less their entropy, which
    no student changes.

    Its gradient in $s$ is $\tau(q - p)$. With the factor $\tau^2$ (Hinton, Vinyals and Dean 2015)
    it has a limit as $\tau \to \infty$, half of the variance of $t - s$ over the classes; as $\tau
    \to 0$, its ratio to $\tau$ tends to $\max_cs_c - s_k$, where $t_k$ is the largest.

    Half precision is computed in float32. Raises `ValueError` for logits of different shapes, and a
    temperature that is not positive.
    """
    temperature = check_positive("temperature", temperature)
    if teacher_logits.shape != student_logits.shape or not teacher_logits.ndim:
        raise ValueError(
            "`teacher_logits` and `student_logits` must have one shape, (..., classes); got "
            f"{teacher_logits.shape} and {student_logits.shape}."
        )
    log_p = _log_probabilities(teacher_logits, temperature)
    log_q = _log_probabilities(student_logits, temperature)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    ratio = jnp.where(p > 0, log_p - log_q, 0)
    near = (p > 0) & (jnp.abs(ratio) < _NEAR)
    small = jnp.where(near, ratio, 0)
    far = jnp.where(near, 0, ratio)
    terms = jnp.where(near, p * (small + jnp.expm1(-small)), p * (far - 1) + q)
    return temperature**2 * terms.sum(axis=-1)


def _log_probabilities(logits: Any, temperature: float) -> Array:
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Before the division, so that a constant added to all is gone with all of its rounding.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    return jax.nn.log_softmax((logits - largest) / temperature)


def decides_alike(teacher_logits: Array, student_logits: Array) -> Array:
    """Of each row, whether both have the largest logit at one class; of equal ones, the first."""
    return jnp.argmax(teacher_logits, axis=-1) == jnp.argmax(student_logits, axis=-1)


def decision_margin(teacher_logits: Float[AnyArray, "*rows classes"]) -> Float[Array, "*rows"]:
    r"""The least $\mathrm{KL}(p\,\Vert\,q)$ of each row at which a student can decide otherwise,
    in nats.

    With the two largest probabilities $p_a \ge p_b$ and their mean $m$,

    $$p_a\ln\frac{p_a}{m} + p_b\ln\frac{p_b}{m},$$

    attained by the $q$ that has $m$ in the place of both (paper_notes/without_labels.md). So a
    student decides alike on every row where its divergence from the teacher is smaller.

    Raises `ValueError` for fewer than two classes.
    """
    if not teacher_logits.ndim or teacher_logits.shape[-1] < 2:
        raise ValueError(
            "`teacher_logits` must have two classes at least, (..., classes); got shape "
            f"{teacher_logits.shape}."
        )
    largest = jnp.sort(_log_probabilities(teacher_logits, 1.0))[..., -2:]
    # Of these two classes alone, to the one that is undecided between them.
    return jnp.exp(largest).sum(axis=-1) * kl_divergence(largest, jnp.zeros_like(largest))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How alike two networks are on some rows.

    - `share`: of the rows on which both have the largest logit at the same class;
    - `divergence`: the mean of `kl_divergence` at temperature one, in nats;
    - `rows`: how many there were.
    """

    share: float
    divergence: float
    rows: int


def agreement(teacher: Network, student: Network, batches: Iterable[PyTree]) -> Agreement:
    """Of the student with the teacher, without a label.

    Raises `ValueError` where there is no batch, and for what `distill` refuses of two networks.
    """
    alike, divergence, rows = 0, 0.0, 0
    for batch in batches:
        if not rows:
            check_fit(teacher, student, batch)
        found = _compared(teacher, student, batch)
        alike += int(found[0])
        divergence += float(found[1])
        rows += int(found[2])
    if not rows:
        raise ValueError("`batches` is empty: give at least one batch.")
    return Agreement(alike / rows, divergence / rows, rows)


@eqx.filter_jit
def _compared(teacher: Network, student: Network, batch: PyTree) -> tuple[Array, Array, int]:
    (taught, known), (function, parameters) = teacher, student
    pair = taught(known, batch), function(parameters, batch)
    divergences = kl_divergence(*pair)
    return decides_alike(*pair).sum(), divergences.sum(), divergences.size


def check_fit(teacher: Network, student: Network, batch: PyTree) -> None:
    """Both give logits of one shape for at least one row, or a `ValueError` that says which does
    not.
    """
    shapes = {name: _logits_of(name, each, batch) for name, each in
              (("teacher", teacher), ("student", student))}  # fmt: skip
    if shapes["teacher"] != shapes["student"]:
        raise ValueError(
            "`teacher` and `student` must give logits of one shape (..., classes) for a batch; got "
            f"{shapes['teacher']} and {shapes['student']}."
        )
    if 0 in shapes["teacher"]:
        raise ValueError(
            f"`batches` has a batch without rows: its logits have shape {shapes['teacher']}."
        )


def _logits_of(name: str, network: Any, batch: PyTree) -> tuple[int, ...]:
    if not isinstance(network, tuple) or len(network) != 2 or not callable(network[0]):
        raise ValueError(
            f"`{name}` must be a pair, a function and its parameters; got {type(network).__name__}."
        )
    try:
        logits = eqx.filter_eval_shape(*network, batch)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` cannot be run on the first batch: {error}") from error
    array = isinstance(logits, jax.ShapeDtypeStruct)
    if not array or logits.ndim < 2 or not jnp.issubdtype(logits.dtype, np.floating):
        found = f"{logits.dtype} of shape {logits.shape}" if array else type(logits).__name__
        raise ValueError(
            f"`{name}` must give one array of floating-point logits, (..., classes); got {found}."
        )
    return logits.shape
