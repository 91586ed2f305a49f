r"""What a theorem is: statements with hypotheses, a bound, and the quantity that it bounds.

To add one, write `theorems/<name>.py`:

1. a docstring that states it: model, claim with explicit constants, where each is attained,
reference (paper and theorem number, or `paper_notes/<name>.md`);
2. a final subclass of `AbstractStatement` for each row of it, which reads its δ, if it has one, as
`self.failure_probability`;
3. a final subclass of `AbstractTheorem` whose fields are those statements and whose docstring says
in one sentence what it claims, and one object of it with the file's name;
4. its line in `_contents.py`; its note, experiment and figure of the same name. `make indices`
writes it into the lists of the documents.

Everything else (verification, controls, attack, rates, tables, figures) follows from the
statement's own parts.
"""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from lowrank_theory._compilation import jit_by_size
from lowrank_theory._numerics import cast, check_fraction, float64
from lowrank_theory.problems import Layer, Observed, Problem, Truth

if TYPE_CHECKING:  # what type checkers understand, and what equinox enforces
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

Statement = TypeVar("Statement", bound="AbstractStatement")


class Direction(enum.Enum):
    """On which side of its bound the realised quantity lies."""

    EQUALITY = "equality"
    UPPER = "upper bound"
    LOWER = "lower bound"


class Certainty(enum.Enum):
    """In what sense a statement holds."""

    SURE = "sure"
    PROBABILITY = "with probability 1-δ"
    EXPECTATION = "in expectation"
    ASYMPTOTIC = "asymptotic"


class Kind(eqx.Module):
    """Direction and certainty of a claim."""

    direction: Direction
    certainty: Certainty

    def __str__(self) -> str:
        """For example `sure upper bound`, or `upper bound with probability 1-δ`."""
        first = self.certainty in (Certainty.SURE, Certainty.ASYMPTOTIC)
        parts = (self.certainty.value, self.direction.value)
        return " ".join(parts if first else reversed(parts))


class Standing(enum.Enum):
    """How a hypothesis can be known on a real layer."""

    CHECKED = "checked"
    REFUTABLE = "refutable"
    TRUSTED = "trusted"


class Hypothesis(eqx.Module):
    """A condition of a statement, with a signed margin: it holds where the margin is not negative.

    `standing`: the margin is *checked* (computed from data), *refutable* (data can contradict it,
    not confirm it), or *trusted* (an assumption such as independence, known for synthetic layers
    only).
    """

    name: str = eqx.field(static=True)
    margin: Float[Array, ""] | float
    standing: Standing = eqx.field(static=True, default=Standing.CHECKED)

    @property
    def holds(self) -> Bool[Array, ""]:
        """Whether the margin is not negative."""
        with float64():
            return jnp.asarray(self.margin) >= 0


class Bound(eqx.Module):
    """The value of a bound, and the hypotheses on which it rests.

    Outside its hypotheses an upper bound is `+inf` and a lower bound `-inf`: a true statement, and
    never a plausible number.
    """

    value: Float[Array, ""]
    hypotheses: tuple[Hypothesis, ...]

    @property
    def holds(self) -> Bool[Array, ""]:
        """Whether every hypothesis holds."""
        with float64():
            return jnp.all(jnp.array([hypothesis.holds for hypothesis in self.hypotheses], bool))

    def require(self) -> Float[Array, ""]:
        """The value, or a runtime error (under `jit` too) that names the first hypothesis that
        fails.
        """
        value = self.value
        with float64():
            for hypothesis in self.hypotheses:
                message = f"The hypothesis '{hypothesis.name}' does not hold, so there is no bound."
                value = eqx.error_if(value, ~hypothesis.holds, message)
        return value


class AbstractAdversary(eqx.Module):
    """What an attacker of a sure statement is free to choose, inside its hypotheses."""

    @abc.abstractmethod
    def start(self, *, key: PRNGKeyArray) -> Any:
        """Random free quantities: a tree of float64 arrays with entries of order one."""

    @abc.abstractmethod
    def play(self, free: Any) -> tuple[Any, Any]:
        """The instance that they make, differentiably, and the estimate of the statement on it.

        `None` stands for `statement.estimate` itself. An adversary gives another where that has no
        derivative: the instance is then built so that its estimate is known.
        """


class Refuted(eqx.Module):
    """No smaller constant is true: the bound times less than `factor` fails `by` an instance or in
    a limit, in words. For a lower bound, divided by less.
    """

    factor: float
    by: str


class Rate(eqx.Module):
    """A power law that a statement predicts along one quantity, where all else stays.

    `settings` maps the values of the quantity, in its order, to settings. There the mean of the
    realised quantity and that of the bound go as the value to the power of these exponents; `None`
    where theory predicts none.
    """

    quantity: str
    settings: Mapping[int, Any] | Mapping[float, Any]
    realised: float | None
    bound: float | None


class AbstractStatement(eqx.Module):
    """One row of a theorem. See the module docstring for how to write one.

    `failure_probability` is the δ of statements with probability 1-δ. The others have it too, and
    do not read it: so that any statement can be asked at any δ, whatever its certainty. Raises
    `ValueError` if it is not between 0 and 1.

    - `kind`: the direction and certainty of the claim;
    - `needs`: `Truth`, or `Observed` where it can be asked of a real layer, or the type of another
      kind of instance (which has `sizes`, as a layer has, for the rounding allowance);
    - `regimes`: named settings, on which it is verified; those of an asymptotic statement have
      `enlarged(factor)`;
    - `control`: a setting on which the bound must be broken by `broken_estimate`;
    - `adversary`: what an attack may choose, for a sure statement; `sharp`: whether the bound is
      attained, so that the attack must come within 1 % of it;
    - `refuted_below`: what theory knows of smaller constants of a statement that is not `sharp`, at
      every δ and over all instances, of which the regimes are some;
    - `rates`: the power laws that it predicts;
    - `growth`, `trials_per_mean`: the sizes at which a limit is looked at, in units of its
      settings, and how many trials of it stand for one of another statement.
    """

    kind: AbstractClassVar[Kind]
    needs: AbstractClassVar[type]
    regimes: AbstractClassVar[Mapping[str, Any]]
    control: AbstractClassVar[Any]
    adversary: ClassVar[AbstractAdversary | None] = None
    sharp: ClassVar[bool] = False
    refuted_below: ClassVar[Refuted | None] = None
    rates: ClassVar[tuple[Rate, ...]] = ()
    growth: ClassVar[tuple[int, ...]] = (1, 4, 16)
    trials_per_mean: ClassVar[float] = 64
    failure_probability: Float[Array, ""] | float = eqx.field(
        default=0.05,
        converter=functools.partial(check_fraction, "failure_probability"),
        kw_only=True,
    )

    @abc.abstractmethod
    def hypotheses(self, instance: Any) -> tuple[Hypothesis, ...]:
        """The conditions of the statement, each with its margin on this instance."""

    @abc.abstractmethod
    def estimate(self, instance: Any) -> Any:
        """The estimator that the statement is about."""

    @abc.abstractmethod
    def broken_estimate(self, instance: Any) -> Any:
        """A deliberately wrong estimator: on the `control` setting it must break the bound."""

    @abc.abstractmethod
    def formula(self, instance: Any, estimate: Any) -> Float[Array, ""]:
        """The bound as written, whether or not its hypotheses hold."""

    @abc.abstractmethod
    def loss(self, instance: Any, estimate: Any) -> Float[Array, ""]:
        """The quantity that is bounded."""

    @abc.abstractmethod
    def magnitude(self, instance: Any) -> Float[Array, ""]:
        """The magnitude, in the units of the loss, of what it is computed from: rounding scales
        with it.
        """

    @property
    def refutation(self) -> Refuted | None:
        """What theory knows of smaller constants; `None` where it knows nothing."""
        if self.kind.direction is Direction.EQUALITY:
            return Refuted(1.0, "an equality")
        return Refuted(1.0, "attained") if self.sharp else self.refuted_below

    def instance(self, setting: Any, *, key: PRNGKeyArray) -> Any:
        """A random instance of the setting."""
        return setting.draw(key=key)

    # Not `Self`, which beartype, the checker of types in the tests, does not know in a method.
    def at(self: Statement, failure_probability: float | None) -> Statement:  # noqa: PYI019
        """The same statement at another δ, or at its own for `None`."""
        if failure_probability is None:
            return self
        return dataclasses.replace(self, failure_probability=failure_probability)

    def traced(self: Statement) -> Statement:  # noqa: PYI019
        """With δ as an array, so that one compiled program serves all; inside `float64`."""
        probability = jnp.asarray(self.failure_probability, float)
        return eqx.tree_at(lambda found: found.failure_probability, self, probability)

    def bound(self, instance: Any, *, failure_probability: float | None = None) -> Bound:
        """The bound on this instance, infinite outside the hypotheses; at the statement's own δ if
        no other is given.

        Raises `ValueError` if the instance lacks what the statement needs, or if δ is not between 0
        and 1.
        """
        with float64():
            return assess(self.at(failure_probability), self._checked(instance))[0]

    def realised(
        self, instance: Any, *, failure_probability: float | None = None
    ) -> Float[Array, ""]:
        """The bounded quantity on this instance, for the estimator that the statement is about."""
        with float64():
            return assess(self.at(failure_probability), self._checked(instance))[1]

    def _checked(self, instance: Any) -> Any:
        if self.needs not in (Truth, Observed):
            if not isinstance(instance, self.needs):
                raise ValueError(
                    f"`instance` must be a `{self.needs.__name__}`; got {type(instance).__name__}."
                )
            return instance
        if not isinstance(instance, Problem | Layer):
            raise ValueError(
                f"`instance` must be a `Problem` or a `Layer`; got {type(instance).__name__}."
            )
        if self.needs is Truth and not isinstance(instance, Problem):
            raise ValueError(
                "This statement needs the truth, which a `Layer` does not have. State one with "
                "`Problem.stated(observed, target_weights, rank)`, or use a statement that needs "
                "`Observed` only."
            )
        return instance


def assess(
    statement: AbstractStatement, instance: Any, estimate: Any = None
) -> tuple[Bound, Float[Array, ""]]:
    """The bound and the realised quantity, from one run of the estimator, or for an `estimate` that
    is known already; call it inside `float64`.
    """
    return _assess(statement.traced(), instance, estimate)


@jit_by_size()
def _assess(
    statement: AbstractStatement, instance: Any, estimate: Any
) -> tuple[Bound, Float[Array, ""]]:
    instance = _exact(instance)
    hypotheses = tuple(_said(statement.hypotheses, instance))
    outside = -jnp.inf if statement.kind.direction is Direction.LOWER else jnp.inf
    if estimate is None:
        estimate = _said(statement.estimate, instance)
    bound = Bound(_number(statement.formula, instance, estimate), hypotheses)
    # Beyond the range of float64, neither side can be computed; within it, a NaN is a fault.
    loss = _number(statement.loss, instance, estimate)
    magnitude = _number(statement.magnitude, instance)
    lost = jnp.isnan(bound.value) | jnp.isnan(loss) | ~jnp.isfinite(magnitude)
    known = bound.holds & ~(lost & _is_extreme(instance))
    bound = Bound(jnp.where(known, bound.value, outside), hypotheses)
    return bound, loss


def _said(method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of a statement says, or a `ValueError` that names the method at fault."""
    try:
        return method(*arguments)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"`{method.__qualname__}` asks for the value of an array while it is compiled, as "
            "`float`, `if` and NumPy do: use `jax.numpy`."
        ) from error


def _number(method: Callable[..., Any], *arguments: Any) -> Float[Array, ""]:
    value = _said(method, *arguments)
    if jnp.shape(value):
        raise ValueError(
            f"`{method.__qualname__}` must give one number; got an array {jnp.shape(value)}."
        )
    return value


def _is_extreme(instance: Any) -> Bool[Array, ""]:
    """Whether products of several of its numbers may leave the range of float64. One that is not
    finite stands for what is not known, such as the range of a loss.
    """
    leaves = [x for x in jax.tree.leaves(instance) if eqx.is_inexact_array(x) and x.size]
    largest = [jnp.max(jnp.abs(jnp.asarray(x, float))) for x in leaves]
    known = [(x > 0) & (x < jnp.inf) for x in largest]
    usual = [(x > 2.0**-64) & (x < 2.0**64) for x in largest]
    return jnp.any(jnp.array(known, bool) & ~jnp.array(usual, bool))


def _exact(instance: Any) -> Any:
    """The same numbers in float64, all but those of a layer as it is observed, for a recovery
    depends on how they are stored.
    """

    def kept(part: Any) -> bool:
        return isinstance(part, Observed)

    return jax.tree.map(
        lambda part: part if kept(part) else cast(part, jnp.float64), instance, is_leaf=kept
    )


class AbstractTheorem(eqx.Module):
    """A theorem: its fields are its statements. `name` is the name of its file."""

    @property
    def name(self) -> str:
        """The name of the theorem's file, note, experiment and figure."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def statements(self) -> dict[str, AbstractStatement]:
        """The statements by full name, such as `planted_rank.gaussian`, in order."""
        return {
            f"{self.name}.{field.name}": getattr(self, field.name)
            for field in dataclasses.fields(self)
        }


UPPER = Kind(Direction.UPPER, Certainty.SURE)
LOWER = Kind(Direction.LOWER, Certainty.SURE)
EQUALITY = Kind(Direction.EQUALITY, Certainty.SURE)
UPPER_WITH_PROBABILITY = Kind(Direction.UPPER, Certainty.PROBABILITY)
LOWER_WITH_PROBABILITY = Kind(Direction.LOWER, Certainty.PROBABILITY)
UPPER_IN_EXPECTATION = Kind(Direction.UPPER, Certainty.EXPECTATION)
LOWER_IN_EXPECTATION = Kind(Direction.LOWER, Certainty.EXPECTATION)
EQUALITY_IN_EXPECTATION = Kind(Direction.EQUALITY, Certainty.EXPECTATION)
ASYMPTOTIC_EQUALITY = Kind(Direction.EQUALITY, Certainty.ASYMPTOTIC)
ASYMPTOTIC_UPPER = Kind(Direction.UPPER, Certainty.ASYMPTOTIC)
