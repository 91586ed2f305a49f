r"""The spectrum of $A^{1/2}UBU^\top A^{1/2}$ for a random rotation $U$, from those of $A$ and $B$.

As the size $N$ grows it tends to the free multiplicative convolution $\mu\boxtimes\nu$ of the two
spectra (Voiculescu). For $z$ off the spectrum two *subordination* functions solve

$$z\omega_2 = h_\mu(\omega_1), \quad z\omega_1 = h_\nu(\omega_2), \qquad
h_\mu(\omega) = \int\frac{t\,d\mu(t)}{1-t\omega} \Big/ \int\frac{d\mu(t)}{1-t\omega},$$

and $\int\frac{x}{z-x}\,d(\mu\boxtimes\nu)(x) = \psi$ with $1+\psi = 1/(1-z\omega_1\omega_2)$
(Belinschi and Bercovici 2007). Mass and sum below a value $q$ are integrals of $\psi$ over the
circle $\lvert z\rvert = q$, which crosses the spectrum in one point:

$$M(q) = 1 + \frac1\pi\int_0^\pi\operatorname{Re}\psi\,d\theta, \qquad
T(q) = \frac1\pi\int_0^\pi\operatorname{Re}(z\psi)\,d\theta, \qquad z = qe^{i\theta}.$$

No density is formed, and nothing is moved off the axis. The solutions are followed from $-q$, where
they are real, towards $q$ by Newton's method. Spectra with atoms, with gaps and of deficient rank
are as good as others. Derivation: paper_notes/gain_of_data.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Complex, Float, Int
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_ranks, in_float64, safe_divide

_VALUES = 96  # of q
_PASSES = 2  # after the first it is known where the spectrum lies
_ANGLES = 20
_LEAST = 1e-14  # of the largest value: what lies below adds nothing in float64
_START, _FEW, _NEWTON = 10, 6, 40  # steps; of Newton's method, after a few only if they still help
_PRECISION = 1e-12


def tail_shares(first: ArrayLike, second: ArrayLike, ranks: Any) -> Float[Array, " count"]:
    r"""The share of the sum of $\mu\boxtimes\nu$ that its smallest $1 - r/N$ hold, for each rank.

    `first` and `second`, (N,), are the eigenvalues of $A$ and of $B$, in any order and units. For
    $A = X^\top X$ and $B = WW^\top$ it is the limit of $\sum_{j>r}s_j(XW)^2/\lVert XW\rVert_F^2$,
    what the best layer of rank $r$ loses, where the left singular vectors of $W$ have nothing to do
    with the activations. Zero where one of the sums is. Right to about 1e-4 of itself where
    the law has a density, to 2 % where it has atoms.

    Raises `ValueError` for spectra that are negative, not finite or of different sizes, and for
    ranks below zero.
    """
    first, second = check_array("first", first, "size"), check_array("second", second, "size")
    if first.shape != second.shape:
        raise ValueError(
            f"`first` and `second` must have the same size (pad with zeros); got {first.size} and "
            f"{second.size}."
        )
    ranks = check_ranks(ranks)
    for name, values in (("first", first), ("second", second)):
        if not isinstance(values, Tracer) and not np.all(np.asarray(values) >= 0):
            raise ValueError(f"`{name}` must hold eigenvalues >= 0, all finite.")
    return _tail_shares(first, second, ranks)


@in_float64
def _tail_shares(
    first: Float[Array, " size"], second: Float[Array, " size"], ranks: Int[Array, " count"]
) -> Float[Array, " count"]:
    kept = 1 - ranks / first.size
    spectra = [safe_divide(each, jnp.mean(each)) for each in (first, second)]
    positive = jnp.min(jnp.stack([jnp.sum(each > 0) for each in spectra]))
    share = _smallest(spectra[0], spectra[1], kept)
    # Beyond the rank of a factor there is nothing; before it, more than nothing and less than all.
    return jnp.where(ranks < positive, jnp.clip(share, 0, kept), 0)


def _smallest(
    first: Float[Array, " size"], second: Float[Array, " size"], kept: Float[Array, " count"]
) -> Float[Array, " count"]:
    """The sum over the smallest shares `kept` of the spectrum; both factors have mean one.

    It is convex in that share, and its slope is the value $q$ there.
    """
    top = jnp.max(first) * jnp.max(second)

    def closer(values: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        mass, total = _below(first, second, values)
        # As many values where mass lies, as where the sum does, and in every decade.
        level = mass + total + jnp.linspace(0, 1, _VALUES)
        levels = jnp.linspace(level[0], level[-1], _VALUES)
        return jnp.exp(jnp.interp(levels, level, jnp.log(values))), (values, mass, total)

    begin = jnp.geomspace(_LEAST, 1, _VALUES) * top
    _, passes = jax.lax.scan(closer, begin, length=_PASSES)
    values, mass, total = (each[-1] for each in passes)
    places, totals, slopes = (
        jnp.append(each, end) for each, end in ((mass, 1), (total, 1), (values, top))
    )
    return _hermite(kept, places, totals, slopes)


def _hermite(
    at: Float[Array, " count"],
    places: Float[Array, " nodes"],
    values: Float[Array, " nodes"],
    slopes: Float[Array, " nodes"],
) -> Float[Array, " count"]:
    """A convex function with known slopes: cubic, and between its tangents and its chord."""
    after = jnp.clip(jnp.searchsorted(places, at), 1, places.size - 1)
    x0, x1, y0, y1, s0, s1 = (
        each[index] for each in (places, values, slopes) for index in (after - 1, after)
    )
    width = x1 - x0
    t = jnp.clip(safe_divide(at - x0, width), 0, 1)
    cubic = (
        y0 * (1 + 2 * t) * (1 - t) ** 2
        + y1 * t**2 * (3 - 2 * t)
        + width * t * (1 - t) * (s0 * (1 - t) - s1 * t)
    )
    tangent = jnp.maximum(y0 + s0 * (at - x0), y1 + s1 * (at - x1))
    chord = y0 * (1 - t) + y1 * t
    return jnp.clip(cubic, jnp.minimum(tangent, chord), chord)


def _below(
    first: Float[Array, " size"], second: Float[Array, " size"], values: Float[Array, " nodes"]
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """$M$ and $T$ at these values."""
    # Angles crowd towards the spectrum: θ = π s⁴ with Gauss-Legendre nodes s.
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLES)
    s = (1 - nodes) / 2
    angles, weights = jnp.asarray(np.pi * s**4), jnp.asarray(2 * np.pi * s**3 * weights)

    def step(omega: Complex[Array, " nodes"], z: Complex[Array, " nodes"]) -> tuple[Any, Any]:
        inner, slope = _mean(first, omega)
        outer, other = _mean(second, inner / z)
        change = (omega - outer / z) / (1 - other * slope / z**2)
        return omega - change, jnp.max(jnp.abs(change) / jnp.abs(omega))

    def on_the_axis(_: Any, omega: Array) -> Array:
        inner, _ = _mean(first, omega)
        outer, _ = _mean(second, -inner / values)
        return (omega - outer / values) / 2

    def follow(omega: Array, angle: Array) -> tuple[Array, tuple[Array, Array]]:
        z = values * jnp.exp(1j * angle)

        def goes_on(state: tuple[Array, Array, Array, Array]) -> Array:
            _, change, before, steps = state
            helps = (steps < _FEW) | (change < before)  # not so where rounding is all that is left
            return (change > _PRECISION) & helps & (steps < _NEWTON)

        def newton(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            omega, change, _, steps = state
            return *step(omega, z), change, steps + 1

        far = jnp.asarray(jnp.inf)
        omega, *_ = jax.lax.while_loop(goes_on, newton, (omega, far, far, jnp.asarray(0)))
        product = omega * _mean(first, omega)[0]  # z ω₁ ω₂
        psi = product / (1 - product)
        return omega, (jnp.real(psi), jnp.real(z * psi))

    start = jax.lax.fori_loop(0, _START, on_the_axis, -1 / values + 0j)
    _, (mass, total) = jax.lax.scan(follow, start, angles)
    return 1 + weights @ mass / jnp.pi, weights @ total / jnp.pi


def _mean(
    spectrum: Float[Array, " size"], omega: Complex[Array, " nodes"]
) -> tuple[Complex[Array, " nodes"], Complex[Array, " nodes"]]:
    r"""$h(\omega)$, the mean of $t$ with weights $1/(1-t\omega)$, and its derivative."""
    real = 1 - spectrum * jnp.real(omega)[:, None]
    imaginary = spectrum * jnp.imag(omega)[:, None]
    size = real**2 + imaginary**2
    real, imaginary = real / size, imaginary / size  # of the weights
    powers = jnp.stack([jnp.ones_like(spectrum), spectrum, spectrum**2], axis=1)
    once = jax.lax.complex(real @ powers, imaginary @ powers)
    twice = jax.lax.complex((real**2 - imaginary**2) @ powers, (2 * real * imaginary) @ powers)
    mean = once[:, 1] / once[:, 0]
    return mean, (twice[:, 2] - mean * twice[:, 1]) / once[:, 0]
