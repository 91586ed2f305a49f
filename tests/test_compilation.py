"""Programs compiled soon are the same functions, also within others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory import _compilation
from lowrank_theory._compilation import SMALL, jit_by_size


@jit_by_size()
def cubed(x):
    return x * x * x


@pytest.mark.parametrize("size", [3, SMALL + 1])
def test_alone_and_within_other_programs(size):
    x = jnp.linspace(0, 2, size)
    wanted = np.asarray(x) ** 3
    rows = jnp.stack([x, x])
    inside = jax.jit(lambda y: y + cubed(x))  # of what is at hand, while another is traced
    for found in (
        cubed(x),
        cubed(np.asarray(x)),
        jax.jit(cubed)(x),
        inside(jnp.zeros(size)),
        jax.vmap(cubed)(rows)[1],
        jax.lax.map(cubed, rows)[1],
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    slope = jax.grad(lambda y: cubed(y).sum())(x)
    np.testing.assert_allclose(slope, 3 * np.asarray(x) ** 2, rtol=1e-5)


def test_only_small_programs_are_compiled_soon(monkeypatch):
    asked = []
    monkeypatch.setattr(_compilation, "soon", lambda level: asked.append(level) or {})
    doubled = jit_by_size()(lambda x: 2 * x)
    doubled(jnp.ones(SMALL + 1))
    assert asked == []
    doubled(jnp.ones(3))
    assert asked == [0]
