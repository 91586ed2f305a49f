"""Layers under study: what is observed, what is true, and settings that draw both.

`Setting(...).draw(key=...)` gives a `Problem`: `Observed`, the only thing that an estimator may
see, and `Truth`. A real layer, of which no truth is known, is a `Layer`.
"""

import abc
import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, after, matmul, namespace, of_either_key
from lowrank_theory._compilation import jit_by_size
from lowrank_theory._described import Described
from lowrank_theory._numerics import (
    AnyArray,
    cast,
    check_array,
    check_count,
    check_rank,
    check_same,
    float64,
    float_dtype,
    in_float64,
    keep,
    settle,
)
from lowrank_theory._random import split
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.generators.activations import (
    AbstractActivations,
    AbstractMismatch,
    Identical,
    Isotropic,
)
from lowrank_theory.generators.noise import AbstractNoise, Gaussian
from lowrank_theory.generators.targets import AbstractTarget, ExactRank


class Observed(eqx.Module):
    r"""What may be known of a layer: the sole input of estimators and certificates.

    - `weights` $W$ (inputs, outputs): the trained layer.
    - `activations` $X$ (samples, inputs): what it sees, or `calibration`: what was kept of it.
    - `compressed_activations` $\tilde X$ (samples, inputs): what its replacement will see, if that
      differs.
    - `outputs` $Y$ (samples, outputs): what to reproduce, if not $XW$ (plus bias).
    - `bias` (outputs,): present for an affine layer, whose replacement then gets a new exact bias.

    Give `weights`, or `activations` with `outputs`. Raises `ValueError` for wrong or mismatched
    shapes, integer dtypes, empty or non-finite arrays.
    """

    weights: Float[AnyArray, "inputs outputs"] | None
    activations: Float[AnyArray, "samples inputs"] | None
    compressed_activations: Float[AnyArray, "samples inputs"] | None
    outputs: Float[AnyArray, "samples outputs"] | None
    bias: Float[AnyArray, " outputs"] | None
    calibration: AbstractCalibration | None

    def __init__(
        self,
        *,
        weights: ArrayLike | None = None,
        activations: ArrayLike | None = None,
        compressed_activations: ArrayLike | None = None,
        outputs: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        calibration: AbstractCalibration | None = None,
    ) -> None:
        def checked(name: str, value: ArrayLike | None, *axes: str):
            return None if value is None else check_array(name, value, *axes)

        self.weights = checked("weights", weights, "inputs", "outputs")
        self.activations = checked("activations", activations, "samples", "inputs")
        self.compressed_activations = checked(
            "compressed_activations", compressed_activations, "samples", "inputs"
        )
        self.outputs = checked("outputs", outputs, "samples", "outputs")
        self.bias = checked("bias", bias, "outputs")
        self.calibration = calibration
        self._check_agreement()

    def _check_agreement(self) -> None:
        if self.weights is None and (self.activations is None or self.outputs is None):
            raise ValueError("Give `weights`, or `activations` together with `outputs`.")
        if not (self.calibration is None or isinstance(self.calibration, AbstractCalibration)):
            raise ValueError(
                "`calibration` must be one, such as `Calibration.empty(inputs)` after its updates; "
                f"got {type(self.calibration).__name__}."
            )
        if self.calibration is not None and self.activations is not None:
            raise ValueError("Give `activations` or `calibration`, not both.")
        if self.activations is None and not (self.compressed_activations is self.outputs is None):
            raise ValueError(
                "`compressed_activations` and `outputs` need `activations` of the same samples."
            )
        inputs, outputs = self.shape
        for name in ("activations", "compressed_activations", "calibration"):
            value = getattr(self, name)
            if value is not None:
                got = value.inputs if isinstance(value, AbstractCalibration) else value.shape[1]
                check_same(name, got, "weights", inputs, "inputs")
        if self.activations is not None:
            for name in ("compressed_activations", "outputs"):
                value = getattr(self, name)
                if value is not None:
                    samples = self.activations.shape[0]
                    check_same(name, value.shape[0], "activations", samples, "samples")
        for name in ("outputs", "bias"):
            value = getattr(self, name)
            if value is not None:
                check_same(name, value.shape[-1], "weights", outputs, "outputs")

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs) of the layer."""
        if self.weights is not None:
            return self.weights.shape[0], self.weights.shape[1]
        assert self.activations is not None
        assert self.outputs is not None
        return self.activations.shape[1], self.outputs.shape[1]

    @property
    def layer_inputs(self) -> Float[AnyArray, "samples inputs"]:
        r"""$\tilde X$: what the compressed layer sees. Raises `ValueError` where no rows are at
        hand.
        """
        if self.activations is None:
            raise ValueError("This needs `activations`; only weights or a calibration are at hand.")
        if self.compressed_activations is None:
            return self.activations
        return self.compressed_activations

    @property
    def target_outputs(self) -> Float[AnyArray, "samples outputs"]:
        """$Y$: the outputs to reproduce, $XW$ plus bias unless `outputs` were given. In the dtype
        of the layer.
        """
        return self._targets(None)

    @property
    def exact_outputs(self) -> Float[AnyArray, "samples outputs"]:
        """$Y$ in float64, where it is a product: not rounded to the dtype of the layer."""
        return self._targets(np.float64)

    @property
    def dtype(self) -> np.dtype:
        """The common float dtype of weights, activations and outputs, in which results leave."""
        seen = self.activations, self.compressed_activations
        return float_dtype(self.weights, seen, self.outputs)

    def _targets(self, dtype: Any) -> Array | np.ndarray:
        if self.outputs is not None:
            return self.outputs
        if self.activations is None:
            raise ValueError("This needs `activations`; only weights or a calibration are at hand.")
        return _affine(self.activations, self.weights, self.bias, dtype=dtype)


@in_float64
def _affine(activations: Array, weights: Array, bias: Array | None, *, dtype: Any = None) -> Array:
    outputs = matmul(activations, weights)
    return outputs if bias is None else outputs + bias


def not_stated() -> Bool[np.ndarray, ""]:
    """False, where nobody has said otherwise."""
    return np.asarray(False)


class Truth(eqx.Module):
    r"""What only the maker of a synthetic layer knows. No estimator takes it.

    - `target_weights` $M$, `noise` $E = Y - \tilde XM$ (for ReLU links: after or before the ReLU,
      see `AbstractLink`),
    - `layer_inputs` $\tilde X$, the inputs on which $M$ acts,
    - `noise_scale`, the sub-Gaussian constant of independent noise entries (infinite where there is
      none known),
    - `gaussian_noise`, `gaussian_rows`: whether noise entries, and rows of $X$, are i.i.d. Gaussian
      by construction,
    - `second_moment` $C = \mathbb E[xx^\top]$ of the rows of $X$, where they have a law,
    - `independent_noise`: whether $E$ was drawn without regard to $\tilde X$ and $M$;
    - `independent_weights`: whether the trained $W$ came about without regard to the rows of $X$,
      which $W = X^+Y$ did not.

    No number shows what depends on what: who makes a layer, or states its truth, says so, and
    what is not said is not taken to hold.
    """

    target_weights: Float[AnyArray, "inputs outputs"]
    noise: Float[AnyArray, "samples outputs"]
    layer_inputs: Float[AnyArray, "samples inputs"]
    noise_scale: Float[AnyArray, ""]
    gaussian_noise: Bool[AnyArray, ""]
    gaussian_rows: Bool[AnyArray, ""]
    second_moment: Float[AnyArray, "inputs inputs"] | None = None
    independent_noise: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)
    independent_weights: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)

    @property
    def clean_outputs(self) -> Float[Array, "samples outputs"]:
        r"""$\tilde XM$."""
        return _affine(self.layer_inputs, self.target_weights, None)


class Layer(eqx.Module):
    """A layer as a question: the observed layer and the rank asked for."""

    observed: Observed
    rank: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, *self.observed.shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.observed.shape


class Problem(eqx.Module):
    """A layer whose truth is known: `Observed`, `Truth` and the rank asked for."""

    observed: Observed
    truth: Truth
    rank: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, *self.observed.shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.observed.shape

    @staticmethod
    def stated(observed: Observed, target_weights: ArrayLike, rank: int) -> "Problem":
        r"""A real layer, with `target_weights` stated to be its truth: the noise is what they
        leave, $E = Y - \tilde XM$.

        The statement is the user's; theorems for any noise then say what follows from it.
        """
        target = check_array("target_weights", target_weights, "inputs", "outputs")
        for axis, name in enumerate(("inputs", "outputs")):
            check_same("target_weights", target.shape[axis], "observed", observed.shape[axis], name)
        with float64():  # the noise is known better than what it is computed from
            noise = _residual(*cast((observed, target), jnp.float64))
        unknown = np.asarray(False)
        truth = Truth(target, noise, observed.layer_inputs, np.asarray(np.inf), unknown, unknown)
        return Problem(observed, truth, rank)


def _residual(observed: Observed, weights: AnyArray) -> Array:
    return jnp.asarray(observed.target_outputs) - matmul(observed.layer_inputs, weights)


class AbstractLink(Described):
    """What happens between the clean pre-activations and the observed outputs."""

    @abc.abstractmethod
    def observe(
        self, clean: Float[AnyArray, "samples outputs"], noise: Float[AnyArray, "samples outputs"]
    ) -> Float[AnyArray, "samples outputs"]:
        """The observed outputs."""


def _relu(array: AnyArray) -> AnyArray:
    return namespace(array).where(array > 0, array, 0)


class Linear(AbstractLink):
    r"""Pre-activations are observed: $Y = \tilde XM + E$."""

    def observe(
        self, clean: Float[AnyArray, "samples outputs"], noise: Float[AnyArray, "samples outputs"]
    ) -> Float[AnyArray, "samples outputs"]:
        """Clean pre-activations plus noise."""
        return clean + noise


class ReluThenNoise(AbstractLink):
    r"""Activations are observed with noise: $Y = \mathrm{relu}(\tilde XM) + E$."""

    def observe(
        self, clean: Float[AnyArray, "samples outputs"], noise: Float[AnyArray, "samples outputs"]
    ) -> Float[AnyArray, "samples outputs"]:
        """Rectified, then noisy."""
        return _relu(clean) + noise


class NoiseThenRelu(AbstractLink):
    r"""Noisy pre-activations are rectified: $Y = \mathrm{relu}(\tilde XM + E)$."""

    def observe(
        self, clean: Float[AnyArray, "samples outputs"], noise: Float[AnyArray, "samples outputs"]
    ) -> Float[AnyArray, "samples outputs"]:
        """Noisy, then rectified."""
        return _relu(clean + noise)


class Setting(Described):
    r"""A frozen description of a random layer: sizes and the laws of its parts.

    `draw` makes activations $X$, compressed activations $\tilde X$, target weights $M$ of rank
    (about) `rank`, noise $E$, and observes $Y$ through the link. For the linear link the trained
    layer is $W = X^+Y$, the weights whose outputs are all of $Y$ that a layer can express; ReLU
    links show no trained layer.
    """

    named = True

    samples: int
    inputs: int
    outputs: int
    rank: int
    activations: AbstractActivations = Isotropic()
    target: AbstractTarget = ExactRank()
    noise: AbstractNoise = Gaussian(0.1)
    mismatch: AbstractMismatch = Identical()
    link: AbstractLink = Linear()

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)
        keep(self, "rank", check_rank(self.rank, self.inputs, self.outputs))

    def enlarged(self, factor: int) -> "Setting":
        """The same setting with `factor` times as many samples."""
        return dataclasses.replace(self, samples=factor * self.samples)

    def draw(self, *, key: Key) -> Problem:
        """A random instance, in float64; with a JAX key also under `jit` and `vmap`.

        With a `numpy.random.Generator` for a key it is drawn with NumPy: of the same laws, though
        other numbers, and without a compilation. Raises `ValueError` if the numbers leave float64.
        """
        problem = _draw(self, key=key)
        _check_fits(problem.truth.target_weights, problem.truth.noise, problem.observed.outputs)
        return problem

    def draw_parts(self, *, key: Key) -> "Parts":
        """What is random of the same instance; call it inside `float64`."""
        xp = namespace(key)
        activations_key, mismatch_key, target_key, noise_key = split(key, 4)
        activations, second_moment = self.activations.draw(
            self.samples, self.inputs, key=activations_key
        )
        layer_inputs = self.mismatch.draw(activations, key=mismatch_key)
        target_key = after(layer_inputs, target_key)
        target = self.target.draw(layer_inputs, self.outputs, self.rank, key=target_key)
        noise = self.noise.draw(layer_inputs, target, key=noise_key)
        truth = Truth(
            target,
            noise,
            layer_inputs,
            noise_scale=xp.asarray(self.noise.sub_gaussian_scale, float),
            gaussian_noise=xp.asarray(isinstance(self.noise, Gaussian)),
            gaussian_rows=xp.asarray(self.activations.gaussian_rows),
            second_moment=second_moment,
            independent_noise=xp.asarray(self.noise.independent),
            independent_weights=xp.asarray(False),
        )
        original = None if isinstance(self.mismatch, Identical) else activations
        return Parts(truth, original, self.link, self.rank)


def _check_fits(*drawn: Any) -> None:
    """What is at hand is finite."""
    traced = any(isinstance(array, Tracer) for array in drawn)
    if not traced and not all(np.isfinite(np.asarray(array)).all() for array in drawn):
        raise ValueError(
            "What was drawn does not fit into float64: the scales of `activations`, `target` and "
            "`noise` together are too large. Make them smaller."
        )


_soon = jit_by_size(lambda s, key: (s.samples + s.inputs) * (s.inputs + s.outputs))


@functools.partial(of_either_key, jit=_soon)
def _draw(setting: Setting, *, key: Key) -> Problem:
    return setting.draw_parts(key=key).instance()


class AbstractParts(eqx.Module):
    """What is random of an instance, as the `draw_parts` of a setting gives it. All else follows,
    and a program that measures the instance computes only what it uses of it.
    """

    @abc.abstractmethod
    def instance(self) -> Any:
        """The instance that follows; call it inside `float64`."""


class Parts(AbstractParts):
    r"""What is random of a problem: its truth and, where they differ from $\tilde X$, the
    activations.
    """

    truth: Truth
    activations: Float[AnyArray, "samples inputs"] | None
    link: AbstractLink
    rank: int = eqx.field(static=True)

    def instance(self) -> Problem:
        """The problem; call it inside `float64`."""
        truth, compressed = self.truth, None
        activations = truth.layer_inputs
        if self.activations is not None:
            activations, compressed = self.activations, truth.layer_inputs
        clean = matmul(truth.layer_inputs, truth.target_weights)
        outputs = self.link.observe(clean, truth.noise)
        _check_fits(truth.target_weights, truth.noise, outputs)
        weights = None
        if isinstance(self.link, Linear):
            pinv = namespace(activations).linalg.pinv
            cutoff = 10 * max(*activations.shape) * float(np.finfo(float).eps)
            weights = matmul(pinv(after(outputs, activations), rtol=cutoff), outputs)
        observed = Observed(
            weights=weights,
            activations=activations,
            compressed_activations=compressed,
            outputs=outputs,
        )
        return Problem(observed, truth, self.rank)
