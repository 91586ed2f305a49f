"""All ranks from one factorisation, under one compilation; many layers in one call."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_theory as lrt
from lowrank_theory import ActivationWeighted, Calibration, Observed, TruncatedSVD
from lowrank_theory.calibration import TriangularCalibration
from lowrank_theory.recovery import EveryRank, every_rank
from oracle import norm, svd
from regimes import REGIMES
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

CASE = REGIMES["more inputs than outputs"].draw()
FULL = 6


def observed(case=CASE, kind="rows") -> Observed:
    x, w, b = case.activations, case.weights, case.bias
    match kind:
        case "weights":
            return Observed(weights=w, bias=b)
        case "rows":
            return Observed(weights=w, activations=x)
        case "affine rows":
            return Observed(weights=w, activations=x, bias=b)
        case "mismatch":
            return Observed(weights=w, activations=x, compressed_activations=case.compressed)
        case "outputs":
            return Observed(activations=case.compressed, outputs=case.outputs)
        case "affine triangle":
            triangle = TriangularCalibration.empty(x.shape[1], compressed=True)
            return Observed(weights=w, calibration=triangle.update(x, case.compressed), bias=b)
        case "moments":
            return Observed(weights=w, calibration=Calibration.empty(x.shape[1]).update(x))
        case _:
            seen = Calibration.empty(x.shape[1], compressed=True).update(x, case.compressed)
            return Observed(weights=w, calibration=seen, bias=b)


KINDS: dict[str, Any] = {
    "weights": TruncatedSVD(),
    "rows": ActivationWeighted(),
    "affine rows": ActivationWeighted(),
    "mismatch": ActivationWeighted(),
    "outputs": ActivationWeighted(),
    "affine triangle": ActivationWeighted(),
    "moments": ActivationWeighted(),
    "moments: affine, mismatch": ActivationWeighted(),
}
kinds = pytest.mark.parametrize(("kind", "method"), KINDS.items(), ids=KINDS.keys())


def close(one, other, scale=1.0, tolerance=1e-11):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance * scale)


def same(one, other, size) -> None:
    """Two recoveries, up to rounding: the layer, its bias, its certificate."""
    assert one.factors.rank == other.factors.rank
    close(one.factors.materialise(), other.factors.materialise(), size)
    assert (one.bias is None) == (other.bias is None)
    if one.bias is not None:
        close(one.bias, other.bias, size)
    scale = float(other.certificate.target_norm)
    for name in ("optimal_error", "target_norm"):
        # from moments, the square has the rounding: its root only half the digits
        close(
            getattr(one.certificate, name) ** 2,
            getattr(other.certificate, name) ** 2,
            scale**2,
        )
    np.testing.assert_allclose(
        np.asarray(one.certificate.excess_bound),
        np.asarray(other.certificate.excess_bound),
        rtol=1e-3,
        atol=1e-12 * scale,
    )
    assert bool(one.certificate.finite) == bool(other.certificate.finite)
    assert one.method == other.method


@kinds
def test_each_rank_is_that_of_recover(kind, method):
    layer = observed(kind=kind)
    sweep = every_rank(layer, method)
    assert isinstance(sweep, EveryRank)
    assert sweep.errors.shape == (FULL + 1,)
    for rank in (1, 3, FULL):
        alone = lrt.recover(layer, rank, method)
        same(sweep.at(rank), alone, norm(CASE.weights))
        assert sweep.at(rank).factors.left.dtype == alone.factors.left.dtype


@kinds
def test_errors_are_those_of_the_oracle(kind, method):
    layer = observed(kind=kind)
    errors = np.asarray(every_rank(layer, method).errors)
    if kind == "weights":
        values = svd(CASE.weights)[1]
    elif kind in ("rows", "moments"):
        values = svd(CASE.activations @ CASE.weights)[1]
    elif kind == "affine rows":
        outputs = CASE.activations @ CASE.weights
        values = svd(outputs - outputs.mean(axis=0))[1]
    else:
        assert np.all(np.diff(errors) <= 1e-9 * errors[0])
        return
    tails = [norm(values[rank:]) for rank in range(FULL + 1)]
    close(errors, tails, tails[0], 1e-7 if kind == "moments" else 1e-12)


def test_rank_zero_is_the_mean():
    x, w, b = CASE.activations, CASE.weights, CASE.bias
    nothing = every_rank(observed(kind="affine rows"), ActivationWeighted()).at(0)
    assert nothing.factors.rank == 0
    close(nothing.bias, (x @ w + b).mean(axis=0), norm(w))
    assert every_rank(observed(kind="rows"), ActivationWeighted()).at(0).bias is None
    kept = every_rank(observed(kind="weights"), TruncatedSVD()).at(0)
    np.testing.assert_array_equal(np.asarray(kept.bias), b)


# --- one compilation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "affine rows", "moments: affine, mismatch"])
def test_a_sweep_of_all_ranks_compiles_once(kind, caplog):
    sweep = every_rank(observed(kind=kind), KINDS[kind])
    traced = []

    @jax.jit
    def layer(sweep, rank):
        traced.append(rank)
        return sweep.at(rank)

    with jax.enable_x64(True):
        found = [layer(sweep, rank) for rank in range(FULL + 1)]
        other = every_rank(observed(REGIMES["more inputs than outputs"].draw(1), kind), KINDS[kind])
        with jax.log_compiles(), caplog.at_level("WARNING"):
            jax.block_until_ready([layer(other, rank) for rank in range(FULL + 1)])
    assert len(traced) == 1
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    sweep.at(1)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        cuts = [sweep.at(rank) for rank in range(FULL + 1)]
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    for rank, (one, cut) in enumerate(zip(found, cuts, strict=True)):
        close(one.factors.left[:, :rank], cut.factors.left, norm(CASE.weights))
        assert not np.any(np.asarray(one.factors.left)[:, rank:])
        assert not np.any(np.asarray(one.factors.right)[rank:])
        if cut.bias is not None:
            close(one.bias, cut.bias, norm(CASE.weights))
        jax.tree.map(close, one.certificate, cut.certificate)


def test_one_program_factorises_and_maps_over_the_ranks(full_precision):
    x, w = CASE.activations.astype(np.float32), CASE.weights.astype(np.float32)

    @jax.jit
    def errors(x, w):
        sweep = every_rank(Observed(weights=w, activations=x), ActivationWeighted())

        def one(rank):
            return jnp.linalg.norm(x @ w - x @ sweep.at(rank).factors.materialise())

        return sweep.errors, jax.lax.map(one, jnp.arange(FULL + 1)), jax.vmap(one)(jnp.arange(3))

    promised, mapped, lanes = errors(x, w)
    close(promised, mapped, norm(x @ w), 1e-6)
    close(lanes, mapped[:3], norm(x @ w), 1e-6)


def test_a_traced_rank_is_clipped():
    sweep: Any = every_rank(observed(), ActivationWeighted())
    at = jax.jit(lambda rank: sweep.at(rank).certificate.optimal_error)
    assert float(at(-1)) == approx(float(sweep.errors[0]))
    assert float(at(FULL + 3)) <= 1e-6 * float(sweep.errors[0])


# --- many layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "mismatch", "moments: affine, mismatch"])
def test_a_stack_of_layers_is_the_loop_over_it(kind):
    method = KINDS[kind]
    layers = [observed(REGIMES["more inputs than outputs"].draw(seed), kind) for seed in range(3)]
    with jax.enable_x64(True):
        stack = jax.tree.map(lambda *each: jnp.stack(each), *layers)
        alone = jax.vmap(lambda layer: lrt.recover(layer, rank=2, method=method))(stack)
        sweeps = jax.jit(jax.vmap(lambda layer: every_rank(layer, method)))(stack)
        cut = jax.vmap(lambda sweep: sweep.at(2))(sweeps)
    assert sweeps.errors.shape == (3, FULL + 1)
    assert alone.certificate.certified.shape == (3,)
    assert sweeps.certificates.certified.shape == (3, FULL + 1)
    for lane, layer in enumerate(layers):
        one = lrt.recover(layer, rank=2, method=method)
        for many in (alone, cut):
            same(jax.tree.map(lambda leaf, lane=lane: leaf[lane], many), one, norm(CASE.weights))


# --- trouble --------------------------------------------------------------------------------------


def test_what_is_not_finite_says_so_at_every_rank():
    weights = jnp.asarray(CASE.weights, jnp.float32).at[0, 0].set(jnp.nan)
    sweep = jax.jit(lambda w: every_rank(Observed(weights=w), TruncatedSVD()))(weights)
    assert not np.any(np.asarray(sweep.certificates.finite))


@pytest.mark.parametrize("kind", ["rows", "moments"])
def test_derivatives_are_those_of_recover_where_no_values_are_equal(kind):
    layer = observed(kind=kind)

    def error(w, recovered):
        changed = eqx.tree_at(lambda layer: layer.weights, layer, w)
        return jnp.sum(recovered(changed).factors.materialise() ** 2)

    with jax.enable_x64(True):
        w = jnp.asarray(CASE.weights)
        one = jax.grad(error)(w, lambda layer: lrt.recover(layer, 2, ActivationWeighted()))
        every = jax.grad(error)(w, lambda layer: every_rank(layer, ActivationWeighted()).at(2))
    close(every, one, norm(one), 1e-9)


BAD = {
    "not nested": (lambda: every_rank(observed(), lrt.Ridge(0.1)), "`method` must be one whose"),
    "no weights": (
        lambda: every_rank(observed(kind="outputs"), TruncatedSVD()),
        "`TruncatedSVD` compresses weights",
    ),
    "nothing seen": (
        lambda: every_rank(observed(kind="weights"), ActivationWeighted()),
        "`ActivationWeighted` needs what the layer sees",
    ),
    "negative": (
        lambda: every_rank(observed(), ActivationWeighted()).at(-1),
        "`rank` must be an integer from 0 to 6; got -1",
    ),
    "above": (
        lambda: every_rank(observed(), ActivationWeighted()).at(7),
        "`rank` must be an integer from 0 to 6; got 7",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
