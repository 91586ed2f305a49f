"""A calibration made from the network itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lowrank_theory._engine.drawn import ChannelStatistics, DrawnBatch
from lowrank_theory._numerics import AnyArray, check_count
from lowrank_theory.approximations import AbstractMatrix, Affine
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.recovery import dense_float64

_COMMON = 0.9  # of the variance of a channel


@dataclasses.dataclass(frozen=True, eq=False)
class Synthetic:
    r"""Batches of no data, for `networks.observe` and `networks.compress` in the place of batches.

    ```python
    statistics = channel_statistics(parameters, batch_normalisations(parameters))
    batches = Synthetic(statistics, lambda key: network.noise(100, key=key), key=jax.random.key(0))
    compressed = compress(function, parameters, batches, Bytes(0.25))
    ```

    Wherever the function adds a shift whose path `statistics` has, the sum is drawn, with the mean
    and the deviation of each channel from there; all else is computed: rectifiers, sums, pooling,
    whatever the function does. So each layer sees samples of what its inputs are.

    - With `correlated=False` the drawn numbers are independent and normal, in channels and places:
      the model of Horton, Jin, Farhadi and Rastegari (2022, arXiv 2011.09058). Second moments
      are then nearly diagonal about their mean, and methods of second order gain nothing by them.
    - With `correlated=True` they are what the layers before make of samples, layer after layer,
      each channel standardised over the batch to its statistics: so they depend on each other as
      the weights make them.

    `inputs(key)` draws a batch for the function, such as noise with the mean and the deviation of
    its inputs: what the first layer sees is that, and nothing else depends on it but for the
    correlations. `batches` are drawn, the same each time. Where `compress` compares whole networks,
    of several methods, it runs them on these inputs, and nothing on the way is drawn.

    Raises `ValueError` without statistics; `observe` and `compress` do for paths that there are
    not, for statistics of another shape, for a leaf whose sum with outputs is not found, and for a
    `compressed` network or `sequential`, of which no statistics are known.
    """

    statistics: Mapping[str, ChannelStatistics]
    inputs: Callable[[PRNGKeyArray], PyTree]
    _: dataclasses.KW_ONLY
    key: PRNGKeyArray
    batches: int = 4
    correlated: bool = True

    def __post_init__(self) -> None:
        check_count("batches", self.batches, 1)
        if not self.statistics:
            raise ValueError(
                "`statistics` is empty: without batch normalisation nothing is known of the data. "
                "Name some by `channel_statistics`."
            )

    def __iter__(self) -> Iterator[DrawnBatch]:
        """The batches, as `observe` takes them."""
        statistics = dict(self.statistics)
        for key in jax.random.split(self.key, self.batches):
            key_inputs, key_draws = jax.random.split(key)
            yield DrawnBatch(self.inputs(key_inputs), statistics, key_draws, self.correlated)


def natural_noise(
    samples: int, height: int, width: int, channels: int, *, key: PRNGKeyArray
) -> Float[Array, "samples height width channels"]:
    """Noise with what is known of photographs in general: amplitudes that fall with the frequency,
    and channels of which 90 % is common brightness (Field 1987; Ruderman 1994). Of mean zero, and
    deviation one over the batch.
    """
    sizes = ("samples", samples), ("height", height), ("width", width), ("channels", channels)
    shape = [check_count(name, size, 1) for name, size in sizes]
    key_own, key_common = jax.random.split(key)
    own = jax.random.normal(key_own, shape)
    common = jax.random.normal(key_common, (*shape[:-1], 1))
    white = np.sqrt(1 - _COMMON) * own + np.sqrt(_COMMON) * common
    frequencies = [np.fft.fftfreq(size) for size in shape[1:3]]
    frequency = np.hypot(frequencies[0][:, None], frequencies[1])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    spectrum = jnp.fft.fft2(white, axes=(1, 2)) * jnp.asarray(amplitude[..., None], white.dtype)
    noise = jnp.fft.ifft2(spectrum, axes=(1, 2)).real
    return (noise - noise.mean()) / noise.std()


def keeping_mean(
    approximation: AbstractMatrix,
    weights: Float[AnyArray, "inputs outputs"],
    seen: AbstractCalibration,
) -> Affine:
    r"""The approximation $Z$ of $W$ with the shift $\bar x(W - Z)$, by which the mean output is
    kept: analytic bias correction (Nagel, van Baalen, Blankevoort and Welling 2019).

    The methods of `compress` that look at data do so on their own. Raises `ValueError` for shapes
    that do not fit.
    """
    if approximation.shape != weights.shape or len(weights) != seen.inputs:
        raise ValueError(
            f"`approximation`, `weights` and `seen` must be of one layer; got {approximation.shape}"
            f", {weights.shape} and {seen.inputs} inputs."
        )
    change = np.asarray(weights, np.float64) - dense_float64(approximation)
    return Affine(approximation, (np.asarray(seen.mean) @ change).astype(approximation.dtype))
