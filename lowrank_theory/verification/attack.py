"""Attack a sure statement: climb realised / bound by gradient over what its adversary may choose.

A bound that is attained is reached by the attack; one that holds but is not sharp stalls it below
one, which is a question to the proof; one that is wrong is broken by it.
"""

import dataclasses
import enum
import functools
import math
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._files import from_json, to_json, write_atomically
from lowrank_theory._numerics import (
    check_count,
    check_key,
    float64,
    rounding_allowance,
    safe_divide,
)
from lowrank_theory._progress import Progress
from lowrank_theory.theorems import (
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Direction,
    assess,
)
from lowrank_theory.verification.sampling import name_of

REACHED = 0.99  # of the bound, by the attack of a sharp statement
SMALLER = 0.95  # a sharp bound times this is broken by the attack
_CLOSE = 0.9999  # so near that further rounds could show nothing more
_FLOOR = 1e-12  # ratios below are as good as none
_RATES = (0.1, 0.01, 0.001)  # learning rate of each round


class Finding(enum.Enum):
    """What an attack says of a bound."""

    REACHED = "sharp, as said"
    BELOW = "holds"
    NOT_REACHED = "said to be sharp, not reached"
    BROKEN = "broken"


@dataclasses.dataclass(frozen=True)
class Witness:
    """The worst instance that an attack found: the `free` choices of the adversary and their ratio.

    `ratio` is realised / bound (inverted for lower bounds), by the statement's own estimator, less
    what rounding may have added.
    """

    name: str
    sharp: bool
    ratio: float
    seconds: float
    free: Any

    @property
    def finding(self) -> Finding:
        """What the attack says of the bound."""
        if self.ratio > 1:
            return Finding.BROKEN
        if not self.sharp:
            return Finding.BELOW
        return Finding.REACHED if self.ratio >= REACHED else Finding.NOT_REACHED

    def row(self) -> dict[str, Any]:
        """The row of the command's table."""
        return {
            "name": self.name,
            "sharp": self.sharp,
            "best_ratio": self.ratio,
            "seconds": self.seconds,
        }

    def save(self, file: Path) -> None:
        """Write the witness as JSON, atomically; every number comes back exactly."""
        leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self.free)]
        content = {"name": self.name, "ratio": self.ratio, "free": leaves}
        write_atomically(file, to_json(content))


def reload(statement: AbstractStatement, file: Path) -> Any:
    """The free choices saved by `Witness.save`. Raises `ValueError` for another statement's file or
    a corrupt one.
    """
    _, adversary = _attackable(statement)
    with float64():
        expected = jax.eval_shape(lambda: adversary.start(key=jax.random.key(0)))
    try:
        content = from_json(file.read_bytes())
        saved = [np.asarray(leaf, float) for leaf in content["free"]]
        name = content["name"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no witness: {error}. Run the attack again.") from None
    if name != name_of(statement) or not all(np.isfinite(leaf).all() for leaf in saved):
        raise ValueError(
            f"{file} holds no witness of {name_of(statement)}: it is of {name!r}, or has numbers "
            "that are not finite. Run the attack again."
        )
    wanted = [leaf.shape for leaf in jax.tree.leaves(expected)]
    if [leaf.shape for leaf in saved] != wanted:
        raise ValueError(
            f"{file} holds a witness of another statement: shapes "
            f"{[leaf.shape for leaf in saved]}, where {wanted} belong. Run the attack again."
        )
    return jax.tree.unflatten(jax.tree.structure(expected), saved)


def replay(statement: AbstractStatement, free: Any) -> float:
    """The ratio of these free choices, by the statement's own estimator; zero outside its
    hypotheses.
    """
    with float64():
        return float(_replay(statement, jax.tree.map(jnp.asarray, free)))


def attack(
    statement: AbstractStatement | AbstractTheorem,
    *,
    key: PRNGKeyArray,
    restarts: int = 12,
    steps: int = 1_000,
    progress: Progress | None = None,
) -> Witness:
    """Search for the instance on which a sure statement is nearest to failing.

    From `restarts` random starts, Adam climbs the ratio realised / bound for `steps` steps of
    decreasing length; up to two further rounds start around the best instance so far, with smaller
    steps. What may be chosen, and how it is kept inside the hypotheses, is the statement's
    `adversary`. The result is a function of the arguments alone. `progress(name, done, total)` is
    called after each round.

    Raises `ValueError` for a theorem in place of a statement, for a statement without an adversary,
    and for counts below one.
    """
    statement, adversary = _attackable(statement)
    restarts, steps = check_count("restarts", restarts, 1), check_count("steps", steps, 1)
    key = check_key("key", key)
    name = name_of(statement)
    began = time.monotonic()
    best_ratio, best = -math.inf, None
    with float64():
        keys = jax.random.split(key, (len(_RATES), restarts))
        starts = jax.lax.map(lambda key: adversary.start(key=key), keys[0])
        for done, rate in enumerate(_RATES, start=1):
            ratios, found = _climb(statement, starts, jnp.asarray(rate), steps)
            ratios = np.where(np.isnan(ratios), -math.inf, ratios)
            winner = int(np.argmax(ratios))
            if best is None or ratios[winner] > best_ratio:
                best_ratio = float(ratios[winner])
                best = jax.tree.map(lambda leaf, w=winner: leaf[w], found)
            if progress:
                progress(name, done, len(_RATES))
            if best_ratio >= _CLOSE or done == len(_RATES):
                break
            starts = jax.vmap(functools.partial(_near, best, rate))(keys[done])
        assert best is not None
        ratio = float(_replay(statement, best))
    free = jax.tree.map(np.asarray, best)
    return Witness(name, statement.sharp, ratio, time.monotonic() - began, free)


def _attackable(
    statement: AbstractStatement | AbstractTheorem,
) -> tuple[AbstractStatement, AbstractAdversary]:
    """The statement and its adversary, or a `ValueError` that says what can be attacked."""
    if isinstance(statement, AbstractTheorem):
        names = ", ".join(n for n, s in statement.statements.items() if s.adversary is not None)
        raise ValueError(f"Attack one statement of a theorem: {names or 'here there is none'}.")
    if not isinstance(statement, AbstractStatement):
        raise ValueError(
            f"`statement` must be one such as `theorems.planted_rank.any_noise`; got {statement!r}."
        )
    if statement.adversary is None:
        raise ValueError(
            f"{name_of(statement)} has no adversary. Only sure statements can be attacked; one "
            "with a probability is through its sure core, a statement of its own."
        )
    return statement, statement.adversary


def _near(best: Any, distance: float, key: Array) -> Any:
    """A random point around the best one."""
    leaves, structure = jax.tree.flatten(best)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + distance * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _ratios(
    statement: AbstractStatement, instance: Any, estimate: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The ratio, and what remains of it beyond rounding and inside the hypotheses."""
    bound, realised = assess(statement, instance, estimate)
    allowance = rounding_allowance(statement.magnitude(instance), *instance.sizes)
    small, large = realised, bound.value
    if statement.kind.direction is Direction.LOWER:
        small, large = large, small
    surely = safe_divide(jnp.maximum(small - allowance, 0), large)
    usable = bound.holds & jnp.isfinite(small) & jnp.isfinite(large)
    return safe_divide(small, large), jnp.where(usable, surely, 0)


@eqx.filter_jit
def _replay(statement: AbstractStatement, free: Any) -> Float[Array, ""]:
    _, adversary = _attackable(statement)
    instance, _ = adversary.play(free)
    return _ratios(statement, instance, None)[1]


@eqx.filter_jit
def _climb(
    statement: AbstractStatement, starts: Any, rate: Float[Array, ""], steps: int
) -> tuple[Float[Array, " restarts"], Any]:
    """The best ratio and the best point of each climb. One after another: batched decompositions
    can wait for each other for ever.
    """
    _, adversary = _attackable(statement)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))  # pyright: ignore[reportArgumentType]

    def objective(free: Any) -> tuple[Array, Array]:
        plain, sure = _ratios(statement, *adversary.play(free))
        return -jnp.log(jnp.maximum(plain, _FLOOR)), sure

    def climb(start: Any) -> tuple[Array, Any]:
        def step(state: Any, _: None) -> tuple[Any, None]:
            free, memory, ratio, best = state
            (_, here), slope = jax.value_and_grad(objective, has_aux=True)(free)
            better = here > ratio
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), free, best)
            # A tie has no derivative: the other directions go on.
            slope = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), slope)
            change, memory = optimiser.update(slope, memory)
            return (optax.apply_updates(free, change), memory, jnp.maximum(here, ratio), best), None

        begin = (start, optimiser.init(start), jnp.asarray(-jnp.inf), start)
        (_, _, ratio, best), _ = jax.lax.scan(step, begin, length=steps)
        return ratio, best

    return jax.lax.map(climb, starts)
