r"""One network that is trained to be compressed to any level: learning compressible subspaces.

A network is a point of a subspace of parameters: of the *line* $\omega(\alpha) = (1-\alpha)w_0 +
\alpha w_1$, or the *point* $w_0 = w_1$. In each step of training a `schedule` draws $\alpha$ and a
level $\gamma$, and the gradient is that of

$$L\bigl(f(\omega(\alpha), \gamma)\bigr) + \beta\,\frac{\langle w_0, w_1\rangle^2}{\lVert
w_0\rVert^2\lVert w_1\rVert^2},$$

where $f$ is a compressor; the second term, of a line, keeps the ends apart. Afterwards any
$\alpha$ can be had: $f(\omega(\alpha), \alpha)$, without training and without statistics. $\alpha
= 1$ is the accurate end. (Nunez, Horton, Prabhu, Ranjan, Farhadi and Rastegari 2021, arXiv
2110.04252.)

With `Truncated` as the compressor and a point, it is training with sampled ranks: every prefix of
the factors becomes a network of its own.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lowrank_theory._numerics import check_count, check_fraction, check_key, check_positive, settle
from lowrank_theory._progress import Progress
from lowrank_theory.data_constrained._runs import Batches, Run, keys_of_epoch, of_epoch
from lowrank_theory.data_constrained.compressors import AbstractCompressor, Level

Loss = Callable[..., Any]
Draws = tuple[Float[Array, " draws"], Float[Array, "draws *paths"]]


class Subspace(eqx.Module):
    """Parameters that depend on a number from 0 to 1. Made by `point` and `line`.

    `shared` has the leaves that all have in common, `start` and `end` the others: trees of one
    structure, with `None` where they have nothing.
    """

    shared: PyTree
    start: PyTree
    end: PyTree

    @staticmethod
    def point(parameters: PyTree) -> "Subspace":
        """The same parameters everywhere."""
        nothing = jax.tree.map(lambda _: None, parameters)
        return Subspace(parameters, nothing, nothing)

    @staticmethod
    def line(
        start: PyTree, end: PyTree, select: Callable[[str], bool] = lambda _: True
    ) -> "Subspace":
        """From one tree to another in the selected leaves, a predicate of the path; the others are
        those of the end. Raises `ValueError` for trees of different structures or shapes, or where
        nothing is selected.
        """
        shapes = [jax.tree.map(np.shape, each) for each in (start, end)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`start` and `end` must be parameters of one network; their structures or shapes "
                "differ."
            )
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, _: select(jax.tree_util.keystr(path)), end
        )
        if not any(jax.tree.leaves(chosen)):
            raise ValueError("`select` selects no leaf: give a `Subspace.point`.")
        ends, shared = eqx.partition(end, chosen)
        return Subspace(shared, eqx.filter(start, chosen), ends)

    def at(self, alpha: float | Float[Array, ""]) -> PyTree:
        """The parameters there. Raises `ValueError` for a number outside 0 to 1; a traced one is
        taken as it is.
        """
        if not isinstance(alpha, Tracer) and not 0 <= float(alpha) <= 1:
            raise ValueError(
                f"`alpha` must lie from 0, the compressed end, to 1, the accurate one; got {alpha}."
            )
        moved = jax.tree.map(lambda w, v: (1 - alpha) * w + alpha * v, self.start, self.end)
        return eqx.combine(moved, self.shared)

    @property
    def squared_cosine(self) -> Float[Array, ""]:
        """Of the ends, over all leaves of two axes or more, or where there are none over all;
        zero for a point.
        """
        pairs = list(zip(*map(jax.tree.leaves, (self.start, self.end)), strict=True))
        kernels = [pair for pair in pairs if pair[0].ndim > 1] or pairs
        if not kernels:
            return jnp.zeros(())
        both, one, other = (
            sum(jnp.vdot(a, b) for a, b in found)
            for found in (
                kernels, [(w, w) for w, _ in kernels], [(v, v) for _, v in kernels],
            )
        )  # fmt: skip
        return jnp.asarray(both**2 / (one * other))


# --- schedules ------------------------------------------------------------------------------------


class AbstractSchedule(eqx.Module):
    """Which parts of a subspace a step trains, at which levels."""

    @abc.abstractmethod
    def draw(self, step: Any, paths: int, *, key: PRNGKeyArray) -> Draws:
        r"""Some $\alpha$ and the level of each, or the levels for so many paths."""


class Sampled(AbstractSchedule):
    r"""One $\alpha$ in each step: with probability `ends` one of the ends `lowest` and 1, by a fair
    coin, else uniform between them; or, of so many `values`, one of $1/n, 2/n, \dots, 1$.

    Within the first `warm_up` steps the level comes down from 1 to $\alpha$ evenly or, without
    `gradual`, stays at 1. `apart` draws levels for each path on its own.
    """

    lowest: float = 0.025
    ends: float = 0.5
    warm_up: int = 0
    gradual: bool = True
    values: int | None = None
    apart: bool = False

    def __check_init__(self) -> None:
        settle(self, "lowest", check_fraction)
        settle(self, "warm_up", check_count, 0)

    def draw(self, step: Any, paths: int, *, key: PRNGKeyArray) -> Draws:
        keys = jax.random.split(key, 3)
        shape = (paths,) if self.apart else ()
        if self.values is None:
            inner = jax.random.uniform(keys[0], shape, minval=self.lowest, maxval=1.0)
            end = jnp.where(jax.random.bernoulli(keys[1], shape=shape), 1.0, self.lowest)
            alphas = jnp.where(jax.random.bernoulli(keys[2], self.ends, shape), end, inner)
        else:
            alphas = jax.random.randint(keys[0], shape, 1, self.values + 1) / self.values
        dense = jnp.maximum(1 - step / max(self.warm_up, 1), 0) if self.warm_up else 0.0
        levels = alphas + (1 - alphas) * (dense if self.gradual else jnp.ceil(dense))
        return jnp.ravel(alphas)[:1], levels[None]


class Sandwich(AbstractSchedule):
    r"""Both ends and two between them in each step, $\alpha = 0, 1$ and twice uniform; their losses
    are summed.
    """

    def draw(self, step: Any, paths: int, *, key: PRNGKeyArray) -> Draws:
        alphas = jnp.concatenate([jnp.array([0.0, 1.0]), jax.random.uniform(key, (2,))])
        return alphas, alphas


class Together(AbstractSchedule):
    """The same levels in each step, all of them; their losses are summed.

    Of widths, it makes a slimmable network (Yu, Yang, Xu, Yang and Huang 2019, arXiv 1812.08928).
    """

    levels: tuple[float, ...]

    def __check_init__(self) -> None:
        if not self.levels or not all(0 <= level <= 1 for level in self.levels):
            raise ValueError(
                f"`levels` must be one or more numbers from 0 to 1; got {self.levels}."
            )

    def draw(self, step: Any, paths: int, *, key: PRNGKeyArray) -> Draws:
        alphas = jnp.array(self.levels)
        return alphas, alphas


class Fixed(AbstractSchedule):
    """One level, to which it comes down from 1 evenly within `warm_up` steps: the baseline that is
    trained for it.
    """

    level: float
    warm_up: int = 0

    def draw(self, step: Any, paths: int, *, key: PRNGKeyArray) -> Draws:
        dense = jnp.maximum(1 - step / max(self.warm_up, 1), 0) if self.warm_up else 0.0
        alphas = jnp.array([self.level])
        return alphas, alphas + (1 - alphas) * dense


# --- training -------------------------------------------------------------------------------------


class Moment(eqx.Module):
    """Where training is: how many steps are done, the level of each path, and the moving averages
    so far.
    """

    step: Any
    levels: Float[Array, " paths"]
    averages: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A subspace after its last step, the loss of each step, before it, and the moving averages
    after the last, where the loss keeps some.
    """

    subspace: Subspace
    compressor: AbstractCompressor
    losses: Float[np.ndarray, " steps"]
    averages: PyTree = None

    def at(self, alpha: float | Float[Array, ""], level: Level | None = None) -> PyTree:
        r"""The parameters $f(\omega(\alpha), \alpha)$, or at another level. Raises `ValueError` as
        `Subspace.at`.
        """
        parameters = self.subspace.at(alpha)
        return self.compressor(parameters, alpha if level is None else level)


def train(
    subspace: Subspace,
    loss: Loss,
    compressor: AbstractCompressor,
    batches: Batches,
    *,
    schedule: AbstractSchedule,
    optimiser: optax.GradientTransformation,
    epochs: int,
    key: PRNGKeyArray,
    apart: float = 1.0,
    averages: PyTree = None,
    momentum: float = 0.1,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    r"""Train a subspace whose members, compressed, have a small `loss(parameters, batch)`.

    ```python
    trained = train(
        Subspace.line(one, other),
        loss,
        Pruned(("['w']",)),
        Shuffled((images, labels), 100),
        schedule=Sampled(warm_up=300),
        optimiser=optax.sgd(0.05, momentum=0.9),
        epochs=30,
        key=jax.random.key(0),
    )
    smallest = trained.at(0.025)
    ```

    `batches` are those that `distill` takes: a list, or a function of a key, such as `Shuffled`,
    that gives those of one epoch. `apart` is $\beta$. All real floating-point arrays are trained.

    Some networks keep what they saw in training: the statistics of a batch normalisation, the
    ranges of the inputs that a layer rounds. `averages` is a tree of arrays that they start from;
    the loss is then `loss(parameters, batch, moment) -> (value, seen)`, is told by a `Moment` where
    training is, and gives a tree of the same shapes, by which averages $a$ become $(1 - m)a + m
    \cdot$ `seen` after each draw; $m$ is the `momentum`.

    With a `folder`, the run is kept there after every epoch, and the same call goes on from it, to
    the same bits. It is named by a hash of the compiled step, all arrays, the key, the number of
    epochs and the first batch; of later batches it knows nothing. `progress("training", done,
    total)` is called after every epoch.

    Raises `ValueError` for batches that are empty or can be gone through only once, for a loss that
    gives other shapes than the `averages` have, and where the loss is not finite, naming the step;
    `OSError` where the folder cannot be read or written.
    """
    epochs, key = check_count("epochs", epochs, 0), check_key("key", key)
    apart = check_positive("apart", apart, zero=True)
    momentum = check_fraction("momentum", momentum)
    averages = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), averages)
    trained, fixed = eqx.partition(jax.tree.map(jnp.asarray, subspace), eqx.is_inexact_array)
    task = _Task(loss, fixed, compressor, schedule, optimiser, apart, momentum)
    begun = trained, optimiser.init(trained), averages
    run, state, losses, start = None, begun, [], 0
    if folder is not None:
        first = next(of_epoch(batches, keys_of_epoch(key, 0)[0]))
        arguments = task, *begun, first, key, np.uint32(0)
        program = _compiled.lower(*arguments).as_text()
        run = Run.of(Path(folder), "subspace", program, arguments, epochs)
        state, (losses,), start = run.load(begun, "losses")
    for epoch in range(start, epochs):
        order, draws = keys_of_epoch(key, epoch)
        for batch in of_epoch(batches, order):
            found = _compiled(task, *state, batch, draws, np.uint32(len(losses)))
            state, value = (*found[:2], found[3]), float(found[2])
            losses.append(value)
            if not math.isfinite(value):
                raise ValueError(
                    f"The loss of step {len(losses)} is {value}: take smaller steps by `optimiser`."
                )
        if run is not None:
            run.save(state, epoch + 1, losses=losses)
        if progress is not None:
            progress("training", epoch + 1, epochs)
    return Trained(eqx.combine(state[0], fixed), compressor, np.array(losses), state[2])


class _Task(eqx.Module):
    """What all steps have in common."""

    loss: Loss
    fixed: PyTree
    compressor: AbstractCompressor
    schedule: AbstractSchedule
    optimiser: optax.GradientTransformation
    apart: float
    momentum: float = eqx.field(static=True)


def _step(
    task: _Task,
    trained: PyTree,
    state: PyTree,
    averages: PyTree,
    batch: PyTree,
    key: PRNGKeyArray,
    number: Any,
) -> tuple[PyTree, PyTree, Array, PyTree]:
    """The subspace and the optimiser's state after a step, the loss before it, and the averages."""
    paths = len(task.compressor.paths)
    key = jax.random.fold_in(key, number)
    alphas, levels = task.schedule.draw(number, paths, key=key)

    def objective(trained: PyTree) -> tuple[Array, PyTree]:
        subspace, kept, losses = eqx.combine(trained, task.fixed), averages, []
        for alpha, level in zip(alphas, levels, strict=True):
            parameters = task.compressor(subspace.at(alpha), level)
            if averages is None:
                losses.append(task.loss(parameters, batch))
                continue
            moment = Moment(number, jnp.broadcast_to(level, (paths,)), kept)
            value, seen = task.loss(parameters, batch, moment)
            losses.append(value)
            kept = _moved(kept, seen, task.momentum)
        return sum(losses, start=task.apart * subspace.squared_cosine), kept

    (value, averages), gradient = jax.value_and_grad(objective, has_aux=True)(trained)
    updates, state = task.optimiser.update(gradient, state, trained)
    return eqx.apply_updates(trained, updates), state, value, averages


def _moved(averages: PyTree, seen: PyTree, momentum: float) -> PyTree:
    shapes = [jax.tree.map(jnp.shape, each) for each in (averages, seen)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`loss` must give what it saw as a tree like `averages`, of shapes "
            f"{shapes[0]}; got {shapes[1]}."
        )
    return jax.tree.map(lambda a, b: (1 - momentum) * a + momentum * b, averages, seen)


_compiled: Any = eqx.filter_jit(_step)
