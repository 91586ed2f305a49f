"""Hypothesis strategies for layers: regimes, spectra and seeds are drawn, never entries.

Random entries leave conditioning and ties to chance; a drawn spectrum with a seed for the rest
prescribes them. Shapes are few and small, so that examples share compilations. Needs `hypothesis`,
which comes with the test dependencies:

```python
@hypothesis.given(strategies.problems())
def test_of_yours(problem): ...
```
"""

import functools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import (
    Observed,
    Problem,
    ReluThenNoise,
    Setting,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_TALL: Mapping[str, Any] = {"samples": 20, "inputs": 8, "outputs": 6}
_WIDE: Mapping[str, Any] = {"samples": 20, "inputs": 6, "outputs": 8}
_SHORT: Mapping[str, Any] = {"samples": 5, "inputs": 8, "outputs": 6}

REGIMES: Mapping[str, Setting] = {
    "more inputs than outputs": Setting(**_TALL, rank=2),
    "more outputs than inputs": Setting(**_WIDE, rank=2),
    "fewer samples than inputs": Setting(**_SHORT, rank=2),
    "full rank": Setting(**_TALL, rank=6),
    "no noise": Setting(**_TALL, rank=2, noise=noise.Gaussian(0.0)),
    "mostly noise": Setting(**_TALL, rank=2, noise=noise.Gaussian(10.0)),
    "rank-deficient activations": Setting(
        **_TALL, rank=2, activations=activations.RankDeficient(4)
    ),
    "ill-conditioned activations": Setting(
        **_TALL, rank=2, activations=activations.FixedSpectrum(spectra.Exponential(1.0))
    ),
    "approximately low rank": Setting(**_TALL, rank=2, target=targets.ApproximateRank()),
    "compressed activations": Setting(**_TALL, rank=2, mismatch=activations.Perturbed(0.3)),
}
"""Small settings in which linear algebra likes to go wrong, by name."""

AFTER_RELU: Mapping[str, Setting] = {
    "outputs after a ReLU": Setting(**_TALL, rank=2, link=ReluThenNoise()),
}
"""Settings whose trained layer is not shown."""


def _strategies() -> Any:
    try:
        import hypothesis.strategies
    except ImportError as error:
        raise ImportError(
            "`lowrank_theory.strategies` needs hypothesis. Install it: `pip install hypothesis`."
        ) from error
    return hypothesis.strategies


def _unnoticed(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which leaves the global random state as it was.

    Checkers of types at run time pick items at random, which hypothesis would take for a draw.
    """

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Any:
        state = random.getstate()
        result = make(*arguments, **options)
        random.setstate(state)
        return result

    return made


def seeds() -> "SearchStrategy[int]":
    """Seeds for `jax.random.key` or `numpy.random.default_rng`."""
    return _strategies().integers(0, 2**31 - 1)


def profiles() -> "SearchStrategy[spectra.AbstractSpectrum]":
    """Profiles of singular values of every kind, also with ties and with zeros."""
    st = _strategies()
    rates = st.floats(0.0, 3.0)
    ties = st.lists(st.sampled_from((0.0, 0.5, 1.0, 2.0)), min_size=1, max_size=8)
    return st.one_of(
        st.just(spectra.Flat()),
        st.builds(_unnoticed(spectra.PowerLaw), decay=rates),
        st.builds(_unnoticed(spectra.Exponential), rate=rates),
        st.builds(
            _unnoticed(spectra.Spiked),
            spikes=st.integers(1, 8),
            ratio=st.sampled_from((1.0, 10.0, 1e4)),
        ),
        ties.filter(any).map(_unnoticed(lambda values: spectra.Given(tuple(values)))),
    )


def settings(regimes: Mapping[str, Setting] = REGIMES) -> "SearchStrategy[Setting]":
    """One of the named regimes."""
    return _strategies().sampled_from(tuple(regimes.values()))


def draw(setting: Setting, seed: int) -> Problem:
    """The instance of a setting that a failing example names, as in `draw(Setting(samples=20,
    inputs=8, outputs=6, rank=2), seed=0)`: in float64, drawn with NumPy.
    """
    return setting.draw(key=np.random.default_rng(seed))


def observe(setting: Setting, seed: int) -> Observed:
    """What may be known of that instance."""
    return draw(setting, seed).observed


def problems(regimes: Mapping[str, Setting] = REGIMES) -> "SearchStrategy[Problem]":
    """Random instances of the regimes: `Observed` and `Truth`, in float64."""
    return _strategies().builds(_unnoticed(draw), settings(regimes), seed=seeds())


def observed_layers(regimes: Mapping[str, Setting] = REGIMES) -> "SearchStrategy[Observed]":
    """What may be known of such layers: weights, activations, outputs."""
    return _strategies().builds(_unnoticed(observe), settings(regimes), seed=seeds())
