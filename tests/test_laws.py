"""Each law holds of what obeys it, and is broken by what does not."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import laws
from lowrank_theory import TruncatedSVD
from lowrank_theory.approximations import LowRank

RANDOM = np.random.default_rng(0)
X, W = RANDOM.standard_normal((5, 4)), RANDOM.standard_normal((4, 3))
broken = pytest.raises(AssertionError)


def product(x, w):
    return jnp.asarray(x) @ jnp.asarray(w)


class Forgetful(eqx.Module):
    """What comes back from a pickle as another."""

    number: float

    def __getstate__(self):
        return {"number": self.number + 1}


def test_programs():
    laws.jit_is_eager(product, X.astype(np.float32), W.astype(np.float32))
    with broken:
        laws.jit_is_eager(lambda x: x + isinstance(x, Tracer), X)
    for law in (laws.vmap_is_a_loop, laws.map_is_a_loop):
        law(lambda row: {"sum": jnp.sum(row), "size": row.size}, X)
        with broken:
            law(lambda row: jnp.sum(row) + isinstance(row, Tracer), X)


def test_units():
    laws.scales(lambda unit: np.sum((unit * X) ** 2), 2)
    laws.scales(lambda unit: {"of": unit * X, "count": X.size}, {"of": 1, "count": 0})
    with broken:
        laws.scales(lambda unit: np.sum((unit * X) ** 2), 1)
    with broken:  # rounded, so not exactly for powers of two
        laws.scales(lambda unit: unit * X + 1e-15)


def test_rotations():
    laws.turns(lambda x, w: x @ w, "si,io->so", X, W, scale=1)
    laws.turns(lambda x, w: [np.linalg.norm(x @ w)], "si,io->", X, W)
    laws.turns(lambda x: x[:, :1], "s-->s-", X, scale=1)
    with broken:
        laws.turns(lambda x, w: x @ w, "si,io->--", X, W)
    with broken:
        laws.turns(np.abs, "s-->s-", X)


def test_dtypes():
    laws.keeps_dtypes(lambda x: {"half": x / 2, "places": np.argsort(x)}, X)
    with broken:
        laws.keeps_dtypes(lambda x: x.astype(np.float32), X)


def test_what_comes_back():
    for value in (TruncatedSVD(), LowRank(X, X.T), {"x": X}, Forgetful.__name__):
        laws.comes_back(value)
    with broken:
        laws.comes_back(Forgetful(1.0))


def test_trees_agree_in_everything():
    tree = {"floats": X, "count": np.int64(3)}
    laws.agree(tree, {"floats": X * (1 + 1e-15), "count": 3})
    for other in (
        {"floats": X * (1 + 1e-12), "count": 3},
        {"floats": X.astype(np.float32), "count": 3},
        {"floats": X[:4], "count": 3},
        {"floats": X, "count": 4},
        [X, 3],
    ):
        with broken:
            laws.agree(tree, other)
