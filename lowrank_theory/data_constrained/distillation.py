r"""A student that learns from a teacher's answers to unlabelled data: distillation.

Step by step, on the same view $x$ of a batch, the student's parameters $\theta$ follow the gradient
of the mean over its rows of

$$\tau^2\,\mathrm{KL}\bigl(\operatorname{softmax}(T(x)/\tau)\,\Vert\,
\operatorname{softmax}(S_\theta(x)/\tau)\bigr)$$

(`kl_divergence`). The teacher's answers follow the view: they are computed anew for each, not kept
for each row (Bagherinezhad, Horton, Rastegari and Farhadi 2018, arXiv 1805.02641, whose temperature
is one). No label is read: a batch is what the functions take. A student that teaches the next one
makes a chain of generations.

**Normalisation.** Networks here are pure functions, with no mode for training that could reach the
teacher: what its normalisation does is in its function. Statistics kept from training and those of
the batch are two functions, and two teachers.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lowrank_theory._numerics import check_count, check_key, check_positive
from lowrank_theory._progress import Progress
from lowrank_theory.data_constrained._runs import Batches, Run, keys_of_epoch, of_epoch
from lowrank_theory.data_constrained.soft_labels import (
    Function,
    Network,
    check_fit,
    decides_alike,
    kl_divergence,
)

Augment = Callable[[PyTree, PRNGKeyArray], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """Batches of `size` rows of arrays, in another order in each epoch, for `distill`.

    `rows` is an array or a tree of some with the same first axis. An epoch has as many batches as
    they fill, or `count`: fewer of many rows, so that a run is kept more often. What is left out
    are other rows in each epoch. Raises `ValueError` where the rows do not fill that many.
    """

    rows: PyTree
    size: int
    count: int | None = None

    def __post_init__(self) -> None:
        lengths = {len(leaf) for leaf in jax.tree.leaves(self.rows)}
        if len(lengths) != 1:
            raise ValueError(f"`rows` must be arrays of one length; got {sorted(lengths)}.")
        (length,) = lengths
        check_count("size", self.size, 1, length, " (the rows that there are)")
        if self.count is not None:
            check_count("count", self.count, 1, length // self.size, " (what the rows fill)")

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return self.count or len(jax.tree.leaves(self.rows)[0]) // self.size

    def __call__(self, key: PRNGKeyArray) -> Iterator[PyTree]:
        """The batches of an epoch."""
        order = np.asarray(jax.random.permutation(key, len(jax.tree.leaves(self.rows)[0])))
        for chosen in order[: len(self) * self.size].reshape(-1, self.size):
            yield jax.tree.map(lambda leaf, chosen=chosen: np.asarray(leaf)[chosen], self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """A student after its last step.

    - `parameters`: for the student's function;
    - `losses`, `agreements`: of each step the mean divergence, and the share of rows on which
      student and teacher decided alike, on the view of the batch and before the step. `agreement`
      says both of other rows.
    """

    parameters: PyTree
    losses: Float[np.ndarray, " steps"]
    agreements: Float[np.ndarray, " steps"]


def distill(
    teacher: Network,
    student: Network,
    batches: Batches,
    *,
    optimiser: optax.GradientTransformation,
    epochs: int,
    key: PRNGKeyArray,
    temperature: float = 1.0,
    augment: Augment | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train the student on the teacher's answers.

    ```python
    batches = Shuffled(images, 100)
    distilled = distill(
        (function, parameters),
        (compressed.function, compressed.parameters),
        batches,
        optimiser=optax.adam(1e-3),
        epochs=10,
        key=jax.random.key(0),
    )
    ```

    Teacher and student are pairs, a function and its parameters, and `function(parameters, batch)`
    are logits (..., classes); a network that `compress` made is one too, whose factors learn and
    whose codes and places stay. Every real floating-point array among the student's parameters is
    trained by the `optimiser`, any of optax's; `optax.masked(optax.set_to_zero(), ...)` at its end
    keeps some.

    `batches` is gone through once an epoch: a list, or anything else that begins anew; or a
    function of a key, such as `Shuffled`, that gives those of one epoch. `augment(batch, key)`,
    which JAX traces, gives the view of a batch that both networks see.

    With a `folder`, what has been trained is written to a file there after every epoch, and the
    same call goes on from it, to the same bits as if it had not been stopped; where it was
    finished, it returns at once. The file is named by a hash of the compiled step (functions,
    optimiser and its rates, augmentation, temperature), all arrays, the key, the number of epochs
    and the first batch, so another call begins anew. Of later batches it knows nothing.
    `progress("distillation", done, total)` is called after every step.

    Raises `ValueError` for a teacher and a student that do not fit each other or the batches,
    batches that are empty or can be gone through only once, and, naming the step, where the loss is
    not finite; `OSError` where the folder cannot be read or written.
    """
    epochs, key = check_count("epochs", epochs, 0), check_key("key", key)
    temperature = check_positive("temperature", temperature)
    if not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(
            "`optimiser` must be one of optax's, such as `optax.adam(1e-3)`; got "
            f"{type(optimiser).__name__}."
        )
    first = next(of_epoch(batches, keys_of_epoch(key, 0)[0]))
    check_fit(teacher, student, first)
    trained, fixed = eqx.partition(_arrays(student[1]), eqx.is_inexact_array)
    if not jax.tree.leaves(trained):
        raise ValueError("`student` has no parameters that are real floating-point arrays.")
    task = _Task(teacher, student[0], fixed, optimiser, augment, temperature)
    begun = trained, optimiser.init(trained)
    state: tuple[PyTree, PyTree] = begun
    run, losses, agreements, start = None, [], [], 0
    if folder is not None:
        arguments = task, *begun, first, key, np.uint32(0)
        program = _step.lower(*arguments).as_text()  # pyright: ignore[reportFunctionMemberAccess]
        run = Run.of(Path(folder), "distillation", program, arguments, epochs)
        state, (losses, agreements), start = run.load(begun, "losses", "agreements")
    steps = operator.length_hint(batches)
    for epoch in range(start, epochs):
        key_order, key_steps = keys_of_epoch(key, epoch)
        for number, batch in enumerate(of_epoch(batches, key_order)):
            given = state[0], state[1], batch, key_steps, np.uint32(number)
            state, loss, share = _step(task, *given)
            losses.append(float(loss))
            agreements.append(float(share))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"The loss of step {len(losses)} is {losses[-1]}: take smaller steps by "
                    "`optimiser`, or check that teacher and student are finite on `batches`."
                )
            steps = max(steps, number + 1)
            if progress is not None:
                progress("distillation", len(losses), epochs * steps)
        if run is not None:
            run.save(state, epoch + 1, losses=losses, agreements=agreements)
    parameters = eqx.combine(state[0], fixed)
    return Distilled(parameters, np.array(losses), np.array(agreements))


class _Task(eqx.Module):
    """What all steps have in common; `fixed` is what the student does not learn."""

    teacher: Network
    function: Function
    fixed: PyTree
    optimiser: optax.GradientTransformation
    augment: Augment | None
    temperature: float


@eqx.filter_jit
def _step(
    task: _Task, trained: PyTree, state: PyTree, batch: PyTree, key: PRNGKeyArray, number: Any
) -> tuple[tuple[PyTree, PyTree], Array, Array]:
    """The student and the optimiser's state after a step; the loss and the agreement before it."""
    view = batch
    if task.augment is not None:
        view = task.augment(batch, jax.random.fold_in(key, number))
    function, parameters = task.teacher
    answers = jax.lax.stop_gradient(function(parameters, view))

    def loss(trained: PyTree) -> tuple[Array, Array]:
        logits = task.function(eqx.combine(trained, task.fixed), view)
        divergence = kl_divergence(answers, logits, temperature=task.temperature)
        return divergence.mean(), decides_alike(answers, logits).mean()

    (value, share), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, state = optax.with_extra_args_support(task.optimiser).update(
        gradient, state, trained, value=value, grad=gradient, value_fn=lambda x: loss(x)[0]
    )
    return (eqx.apply_updates(trained, updates), state), value, share


def _arrays(parameters: PyTree) -> PyTree:
    """NumPy's arrays as JAX's."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, parameters
    )
