"""Hypothesis strategies for layers: regimes, spectra and seeds are drawn, never entries.

Random entries leave conditioning and ties to chance; a drawn spectrum with a seed for the rest
prescribes them. Drawing is NumPy's and compiles nothing; shapes are few and small, so that examples
share the programs of what is asserted. The first example of each shape compiles those, hence
`deadline=None`; all else may stay as hypothesis has it. Needs `hypothesis`, which comes with the
test dependencies. A test of a bound of yours:

```python
import hypothesis
import numpy as np

import lowrank_theory as lrt
from lowrank_theory import strategies


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.problems())
def test_my_bound(problem):
    recovery = lrt.recover(problem.observed, rank=problem.rank, method=lrt.ActivationWeighted())
    error = float(lrt.output_error(recovery, problem.truth))
    bound = 2 * np.linalg.norm(problem.truth.noise)
    rounding = 1e-12 * np.linalg.norm(problem.observed.outputs)
    assert error <= bound + rounding
```

It fails, and names the layer: `draw(Setting(samples=20, inputs=8, outputs=6, rank=2,
target=ApproximateRank()), seed=0)`. The bound forgets what weights lose that are only
approximately of low rank; of those that are exactly so it holds. `strategies.draw` draws that layer
again, and `problems({"mine": setting})` layers of any settings of yours.

`approximations` draws what may stand in the place of a matrix, of every kind.
"""

import functools
import random
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_theory.approximations import AbstractApproximation
from lowrank_theory.approximations.examples import APPROXIMATIONS as APPROXIMATIONS
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


def _keeping_random_state(make: Callable[..., Any]) -> Callable[..., Any]:
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
        st.builds(_keeping_random_state(spectra.PowerLaw), decay=rates),
        st.builds(_keeping_random_state(spectra.Exponential), rate=rates),
        st.builds(
            _keeping_random_state(spectra.Spiked),
            spikes=st.integers(1, 8),
            ratio=st.sampled_from((1.0, 10.0, 1e4)),
        ),
        ties.filter(any).map(_keeping_random_state(lambda values: spectra.Given(tuple(values)))),
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
    return _strategies().builds(_keeping_random_state(draw), settings(regimes), seed=seeds())


def observed_layers(regimes: Mapping[str, Setting] = REGIMES) -> "SearchStrategy[Observed]":
    """What may be known of such layers: weights, activations, outputs."""
    return _strategies().builds(_keeping_random_state(observe), settings(regimes), seed=seeds())


def approximation(
    kind: str, seed: int, stack: tuple[int, ...] = (), inputs: int = 6, outputs: int = 5
) -> AbstractApproximation:
    """The approximation that a failing example names, as in `approximation('4 bits', seed=0)`: of
    a kind of `APPROXIMATIONS`, with small integers and powers of two for numbers, in float32.
    """
    return APPROXIMATIONS[kind](np.random.default_rng(seed), stack, inputs, outputs)


def approximations(
    kinds: Collection[str] = tuple(APPROXIMATIONS),
) -> "SearchStrategy[AbstractApproximation]":
    """What may stand in the place of a matrix, or of a stack of some: of these kinds, by default of
    all.
    """
    st = _strategies()
    return st.builds(
        _keeping_random_state(approximation),
        st.sampled_from(tuple(kinds)),
        seed=seeds(),
        stack=st.sampled_from(((), (2,), (2, 3))),
        inputs=st.sampled_from((1, 4, 6, 9)),
        outputs=st.sampled_from((1, 5, 8)),
    )
