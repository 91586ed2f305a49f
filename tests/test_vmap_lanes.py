"""A thousand lanes of every pure function on two cores.

Two independent decompositions in one batched program can wait for each other's threads for ever,
so each runs in a process that a time limit ends.
"""

import os
import subprocess
import sys

import pytest

LIMIT = 240

PROGRAM = """
import faulthandler
import jax
import jax.numpy as jnp
import lowrank_theory as lrt
from lowrank_theory.generators import activations, noise, targets
from lowrank_theory.recovery import (
    activation_weighted, activation_weighted_from_moments, ridge, singular_value_threshold,
    truncated_svd)

faulthandler.dump_traceback_later({limit} - 10, exit=True)
LANES, SIZES = 1000, dict(samples=12, inputs=8, outputs=6, rank=2)

def lanes(name, function):
    out = jax.block_until_ready(jax.jit(jax.vmap(function))(keys))
    finite = jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), out)
    assert jax.tree.all(finite), name
    print(name, flush=True)

def parts(key, shapes=((8, 6), (12, 8), (12, 8), (12, 6), (6,))):
    return [jax.random.normal(k, s) for k, s in zip(jax.random.split(key, len(shapes)), shapes)]

def dense(result):
    return result[0].left @ result[0].right

keys = jax.random.split(jax.random.key(0), LANES)

def svd(key):
    W, *_ = parts(key)
    return dense(truncated_svd(W, rank=2))

def weighted(key):
    W, X, *_ = parts(key)
    return dense(activation_weighted(W, X, rank=2))

def mismatch(key):
    W, X, T, *_ = parts(key)
    return dense(activation_weighted(W, X, T, rank=2))

def affine_ridge(key):
    W, X, T, Y, b = parts(key)
    return dense(ridge(W, X, jnp.asarray(0.1), T, None, b, rank=2))

def seen(X, *T):
    return lrt.Calibration.empty(8, compressed=bool(T)).update(X, *T)

def moments(key):
    W, X, *_ = parts(key)
    return dense(activation_weighted_from_moments(W, seen(X), rank=2))

def moments_mismatch(key):
    W, X, T, Y, b = parts(key)
    return dense(activation_weighted_from_moments(W, seen(X, T), b, rank=2))

def moments_mismatch_wide(key):
    W, X, T = parts(key, ((6, 8), (12, 6), (12, 6)))
    return dense(activation_weighted_from_moments(
        W, lrt.Calibration.empty(6, compressed=True).update(X, T), rank=2))

def threshold(key):
    W, X, T, Y, b = parts(key)
    return dense(singular_value_threshold(T, Y, 1.0, rank=6))

def gradient(key):
    W, X, T, Y, b = parts(key)
    return jax.grad(lambda T: jnp.sum(dense(activation_weighted(W, X, T, rank=2))))(T)

for function in (svd, weighted, mismatch, affine_ridge, moments, moments_mismatch,
                 moments_mismatch_wide, threshold, gradient):
    lanes(function.__name__, function)

for name, setting in {{
    "plain": lrt.Setting(**SIZES),
    "gaussian rows": lrt.Setting(**SIZES, activations=activations.GaussianRows(),
                                 mismatch=activations.Perturbed()),
    "fixed spectrum, output rank": lrt.Setting(**SIZES, activations=activations.FixedSpectrum(),
                                               target=targets.ExactOutputRank()),
    "opposed": lrt.Setting(**SIZES, activations=activations.LowRankPlusNoise(2),
                           target=targets.OpposedToTheData(), noise=noise.Opposing(0.1, 2)),
    "ball": lrt.Setting(**SIZES, activations=activations.MassiveDirections(),
                        target=targets.SchattenBall(), noise=noise.StudentT(0.1)),
}}.items():
    def draw_and_recover(key):
        problem = setting.draw(key=key)
        fitted = lrt.recover(problem.observed, rank=2, method=lrt.ActivationWeighted())
        return lrt.output_error(fitted, problem.truth).astype(jnp.float32)
    lanes(name, draw_and_recover)
print("all")
"""

# LAPACK's SVD does not return from an infinity: inside a program there is no error to raise first.
NOT_FINITE = """
import faulthandler
import jax
import jax.numpy as jnp
import equinox as eqx
import lowrank_theory as lrt
from lowrank_theory.recovery import *

faulthandler.dump_traceback_later({limit} - 10, exit=True)

def recovered(W, X, method):
    return lrt.recover(lrt.Observed(weights=W, activations=X, compressed_activations=X + 1), rank=2,
                       method=method)

X = jax.random.normal(jax.random.key(0), (12, 8))
W = jax.random.normal(jax.random.key(1), (8, 6))
for method in (lrt.TruncatedSVD(), lrt.ActivationWeighted(), lrt.Ridge(0.1),
               lrt.SingularValueThreshold(1.0)):
    run = eqx.filter_jit(lambda W, X: recovered(W, X, method))
    required = eqx.filter_jit(lambda W, X: recovered(W, X, method).require().factors.left)
    assert bool(run(W, X).certificate.finite)
    required(W, X)
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        broken = W.at[1, 2].set(bad)
        assert not bool(run(broken, X).certificate.finite), (method, bad)
        assert not bool(run(broken, X).certificate.certified), (method, bad)
        try:
            jax.block_until_ready(required(broken, X))
        except Exception as error:
            assert "not finite" in str(error), error
        else:
            raise AssertionError((method, bad))

    print(method, flush=True)

@eqx.filter_jit
def moments(W, X):
    calibration = lrt.Calibration.empty(8).update(X)
    return lrt.recover(lrt.Observed(weights=W, calibration=calibration), rank=2,
                       method=lrt.ActivationWeighted()).certificate.finite

assert bool(moments(W, X))
for bad in (jnp.inf, jnp.nan):
    assert not bool(moments(W, X.at[3, 3].set(bad)))
print("all")
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(PROGRAM, marks=pytest.mark.slow, id="lanes"),
        pytest.param(NOT_FINITE, id="not finite"),
    ],
)
def test_comes_to_an_end(program):
    # With as many threads as a user has.
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program.format(limit=LIMIT)],
        env=environment,
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.endswith("all\n")
