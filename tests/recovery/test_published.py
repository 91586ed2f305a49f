"""The published recipes: by formula, as one map where they are one, and where they break."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lowrank_theory as lrt
from lowrank_theory import Calibration, Observed
from lowrank_theory.calibration import TriangularCalibration
from lowrank_theory.problems import Layer
from lowrank_theory.recovery import Certificate, published
from lowrank_theory.theorems import price_of_ignoring_data
from oracle import norm, svd, truncated
from regimes import REGIMES, orthonormal
from tolerance import approx

pytestmark = pytest.mark.thinned(5)

RANK = 2
CASE = REGIMES["more inputs than outputs"].draw()
X, W = CASE.activations, CASE.weights
SAMPLES = len(X)


def by_metric(metric, weights, rank):
    """T^-1 [T W]_r, from the definition."""
    return np.linalg.pinv(metric, rcond=1e-13) @ truncated(metric @ weights, rank)


def root(matrix):
    return np.real(scipy.linalg.sqrtm(matrix))


def damped(gram, damping=0.01):
    moment = gram / SAMPLES
    return moment + damping * np.mean(np.diag(moment)) * np.eye(len(moment))


def projected(gram, weights, rank):
    basis = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
    return basis @ basis.T @ weights


METRIC = {
    published.ASVD: lambda x: np.diag(np.abs(x).mean(axis=0) ** 0.5 + 1e-6),
    published.DiagonalQERA: lambda x: np.diag(np.sqrt((x**2).mean(axis=0))),
    published.CorDA: lambda x: damped(x.T @ x),
    published.DRONE: lambda x: x,
    published.SVDLLM: lambda x: scipy.linalg.cholesky(x.T @ x),
    published.QERA: lambda x: root(x.T @ x / len(x)),
    published.COALA: lambda x: np.linalg.qr(x, mode="r"),
    published.ESPACE: None,
}
OPTIMAL = [published.DRONE(), published.SVDLLM(), published.QERA(), published.COALA()]
FROM_ROWS = published.ASVD, published.COALA
RECIPES = [recipe() for recipe in METRIC]
CASES = [
    pytest.param(recipe, moments, id=f"{type(recipe).__name__}-{kind}")
    for recipe in RECIPES
    for moments, kind in ((False, "rows"), (True, "moments"))
    if not (moments and isinstance(recipe, FROM_ROWS))
]
recipes = pytest.mark.parametrize(("recipe", "moments"), CASES)
rows = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)


def fit(recipe, x=X, w=W, *, moments=False, bias=None, rank=RANK) -> Any:
    if moments:
        calibration = Calibration.empty(x.shape[1]).update(x)
        observed = Observed(weights=w, bias=bias, calibration=calibration)
    else:
        observed = Observed(weights=w, bias=bias, activations=x)
    return lrt.recover(observed, rank=rank, method=recipe)


def dense(recipe, x=X, w=W, *, moments=False):
    return np.asarray(fit(recipe, x, w, moments=moments).factors.materialise())


def error(z, x=X, w=W):
    return norm(x @ (w - z))


def optimum(x=X, w=W):
    return norm(svd(x @ w)[1][RANK:])


@pytest.mark.parametrize(
    "recipe",
    [r for r in RECIPES if not isinstance(r, published.ASVD)],
    ids=lambda r: type(r).__name__,
)
def test_a_mean_beyond_the_rows_leaves_the_stated_error_true(recipe):
    """The row of the means in a triangle grows with the number of rows, and with it its unit."""
    x = X + 50.0
    seen = TriangularCalibration.empty(x.shape[1]).update(x)
    found = lrt.recover(Observed(weights=W, calibration=seen), rank=RANK, method=recipe)
    z, certificate = np.asarray(found.factors.materialise()), cast(Certificate, found.certificate)
    assert error(z, x) - optimum(x) <= float(certificate.excess_bound) * (1 + 1e-9)
    assert float(certificate.excess_bound) <= error(z, x) - optimum(x) + 1e-9 * norm(x @ W)


# --- by formula -----------------------------------------------------------------------------------


def expected(recipe, x, w):
    metric = METRIC[type(recipe)]
    return by_metric(metric(x), w, RANK) if metric else projected(x.T @ x, w, RANK)


@recipes
def test_follows_its_formula(recipe, moments):
    assert norm(dense(recipe, moments=moments) - expected(recipe, X, W)) <= 1e-11 * norm(W)


@pytest.mark.parametrize("recipe", [published.QERA(), published.ESPACE()])
def test_follows_its_formula_where_outputs_outnumber_inputs(recipe):
    case = REGIMES["more outputs than inputs"].draw(1)
    x, w = case.activations, case.weights
    assert norm(dense(recipe, x, w) - expected(recipe, x, w)) <= 1e-11 * norm(w)


def test_every_factor_of_the_gram_gives_one_map():
    """Any T with T^T T = X^T X, and so four recipes, and the estimator without any inverse."""
    random = np.random.default_rng(0)
    best = dense(lrt.ActivationWeighted())
    factor = scipy.linalg.cholesky(X.T @ X)
    turned = [orthonormal(random, 8, 8) @ factor for _ in range(5)]
    maps = [by_metric(t, W, RANK) for t in (factor, root(X.T @ X), X, *turned)]
    maps += [dense(recipe) for recipe in OPTIMAL]
    assert max(norm(z - best) for z in maps) <= 1e-12 * norm(W)


@pytest.mark.parametrize("recipe", [published.COALA(), published.DRONE()])
def test_a_triangular_factor_stands_for_the_rows(recipe):
    seen = TriangularCalibration.empty(8).update(X[:11]).update(X[11:])
    recovery = lrt.recover(Observed(weights=W, calibration=seen), RANK, recipe)
    assert norm(np.asarray(recovery.factors.materialise()) - dense(recipe)) <= 1e-12 * norm(W)
    assert bool(recovery.certificate.certified)


def test_a_regularised_coala_is_the_ridge():
    found = dense(published.COALA(penalty=0.7))
    assert norm(found - dense(lrt.Ridge(0.7))) <= 1e-12 * norm(W)
    assert norm(found - dense(published.COALA())) >= 1e-3 * norm(W)


def test_the_theorem_on_prices_judges_the_same_map():
    layer = Layer(Observed(weights=W, activations=X), RANK)
    with jax.enable_x64(True):
        factors = price_of_ignoring_data.channel_scaling.estimate(layer)
    judged = np.asarray(factors.left) @ np.asarray(factors.right)
    assert norm(dense(published.DiagonalQERA()) - judged) <= 1e-11 * norm(W)


def test_espace_leaves_out_the_smallest_eigenvalues():
    basis = np.asarray(fit(published.ESPACE()).factors.left)
    missing = X - X @ basis @ basis.T
    tail = svd(X)[1][RANK:]
    assert norm(missing) == approx(norm(tail))
    assert error(dense(published.ESPACE())) <= svd(W)[1][0] * norm(tail) * (1 + 1e-12)


def test_espace_is_optimal_for_weights_without_a_preference():
    even = 3 * orthonormal(np.random.default_rng(1), 8, 8)
    found = dense(published.ESPACE(), X, even)
    assert error(found, X, even) == approx(optimum(X, even))


def test_corda_doubles_its_damping_until_the_inverse_is_accurate():
    x = REGIMES["ill-conditioned activations"].draw().activations
    metric = damped(x.T @ x, 1e-14)
    first = np.linalg.norm(metric @ np.linalg.inv(metric) - np.eye(8))
    strict = dense(published.CorDA(damping=1e-14, tolerance=float(first) / 100), x)
    candidates = (by_metric(damped(x.T @ x, 1e-14 * 2**k), W, RANK) for k in range(40))
    distances = [norm(strict - candidate) for candidate in candidates]
    assert np.argmin(distances) >= 2
    assert min(distances) <= 1e-6 * norm(W) < distances[0]


# --- against the optimum --------------------------------------------------------------------------


@recipes
def test_never_below_the_optimum_and_says_how_far_above(recipe, moments):
    for seed in range(10):
        case = REGIMES["more inputs than outputs"].draw(seed)
        x, w = case.activations, case.weights
        recovery = fit(recipe, x, w, moments=moments)
        realised = error(np.asarray(recovery.factors.materialise()), x, w)
        best, certificate = optimum(x, w), recovery.certificate
        assert realised >= best * (1 - 1e-12)
        assert float(certificate.optimal_error) == approx(best)
        assert realised - best <= float(certificate.excess_bound) <= realised - best + 1e-8 * best
        assert bool(certificate.certified) == (realised <= 1.0009 * best)
        assert bool(certificate.certified) or recipe not in OPTIMAL
        assert recovery.bias is None


def test_white_inputs_leave_nothing_to_weigh():
    white = REGIMES["white activations"].draw().activations
    plain = truncated(W, RANK)
    for recipe in RECIPES:
        if not isinstance(recipe, published.ASVD | published.ESPACE):
            assert norm(dense(recipe, white) - plain) <= 1e-11 * norm(W)


# --- laws -----------------------------------------------------------------------------------------


@recipes
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units(recipe, moments, factor):
    """The weights' always; the activations' too, but for the published absolute floor."""
    z = dense(recipe, moments=moments)
    found = dense(recipe, X, factor * W, moments=moments)
    assert norm(found - factor * z) <= 1e-11 * norm(z) * factor
    rescaled = dense(recipe, factor * X, moments=moments)
    if isinstance(recipe, published.ASVD):
        assert 1e-8 <= norm(rescaled - z) / norm(z) <= 1e-2
    else:
        assert norm(rescaled - z) <= 1e-11 * norm(z)


@rows
def test_rotations(recipe):
    random = np.random.default_rng(2)
    z, turn = dense(recipe), orthonormal(random, 8, 8)
    outputs, samples = orthonormal(random, 6, 6), orthonormal(random, SAMPLES, SAMPLES)
    assert norm(dense(recipe, X, W @ outputs) - z @ outputs) <= 1e-11 * norm(z)
    turned = norm(dense(recipe, X @ turn, turn.T @ W) - turn.T @ z) / norm(z)
    mixed = norm(dense(recipe, samples @ X) - z) / norm(z)
    by_channel = isinstance(recipe, published.ASVD | published.DiagonalQERA)
    assert turned >= 1e-2 if by_channel else turned <= 1e-11
    assert mixed >= 1e-3 if isinstance(recipe, published.ASVD) else mixed <= 1e-11


@pytest.mark.parametrize(
    ("recipe", "moments"),
    [(published.CorDA(), False), (published.SVDLLM(), True), (published.DRONE(), False)],
)
def test_lanes_and_types(recipe, moments):
    """A stack of layers is the loop over it; float32 stays float32; the bias stays."""
    cases = [REGIMES["more inputs than outputs"].draw(seed) for seed in range(3)]
    xs = np.stack([case.activations for case in cases]).astype(np.float32)
    ws = np.stack([case.weights for case in cases]).astype(np.float32)
    bias = np.ones(6, np.float32)

    def recovered(x, w):
        return fit(recipe, x, w, moments=moments, bias=bias)

    stack = jax.jit(jax.vmap(recovered))(xs, ws)
    for lane, (x, w) in enumerate(zip(xs, ws, strict=True)):
        one = recovered(x, w)
        z = np.asarray(one.factors.materialise())
        assert z.dtype == np.float32
        assert norm(np.asarray(stack.factors.materialise())[lane] - z) <= 1e-5 * norm(z)
        np.testing.assert_array_equal(np.asarray(one.bias), bias)


# --- where they break -----------------------------------------------------------------------------

DEFICIENT = REGIMES["rank-deficient activations"].draw()


@recipes
def test_rank_deficient_activations(recipe, moments):
    """The outputs' optimum survives in those that are for it; the safeguards keep all finite."""
    x, w = DEFICIENT.activations, DEFICIENT.weights
    recovery = fit(recipe, x, w, moments=moments)
    assert bool(recovery.certificate.finite)
    realised = error(np.asarray(recovery.factors.materialise()), x, w)
    assert bool(recovery.certificate.certified) == (recipe in OPTIMAL)
    if recipe in OPTIMAL:
        assert realised == approx(optimum(x, w))
    if isinstance(recipe, published.DRONE):  # nothing where the activations show nothing
        hidden = svd(x)[2][4:]
        assert norm(hidden @ np.asarray(recovery.factors.left)) <= 1e-7 * norm(w)


TWIN = 1e6 * np.array([[1.0, 1.0], [-1.0, -1.0]])  # the same input twice, exactly


@pytest.mark.parametrize("moments", [False, True])
def test_a_shift_below_rounding_cannot_save_the_cholesky_factor(moments):
    """The Gram 2e12 [[1, 1], [1, 1]] has a zero pivot, which 1e-6 does not change."""
    recovery = fit(published.SVDLLM(), TWIN, np.eye(2), moments=moments, rank=1)
    assert not bool(recovery.certificate.finite)
    assert not bool(recovery.certificate.certified)
    assert float(recovery.certificate.excess_bound) == np.inf
    with pytest.raises(eqx.EquinoxRuntimeError, match="not finite"):
        recovery.require()
    small = fit(published.SVDLLM(), TWIN / 1e6, np.eye(2), moments=moments, rank=1)
    assert bool(small.certificate.finite)
    other = fit(published.QERA(), TWIN, np.eye(2), moments=moments, rank=1)
    assert bool(other.certificate.finite)


def test_failure_in_one_lane_stays_there():
    xs = jnp.asarray(np.stack([TWIN, TWIN / 1e6]), jnp.float32)  # powers of ten still, and twins
    finite = jax.vmap(lambda x: fit(published.SVDLLM(), x, np.eye(2), rank=1).certificate.finite)
    assert finite(xs).tolist() == [False, True]


def test_activations_that_vanish():
    zero = np.zeros_like(X)
    finite = {type(r).__name__: bool(fit(r, zero).certificate.finite) for r in RECIPES}
    assert not finite.pop("CorDA")  # nothing to damp with; and its loop ends
    assert all(finite.values())


# --- bad input ------------------------------------------------------------------------------------

SEEN = Calibration.empty(8).update(X)
BAD = {
    "no weights": (
        lambda: lrt.recover(Observed(activations=X, outputs=X @ W), 2, published.QERA()),
        "`QERA` compresses trained weights",
    ),
    "nothing seen": (
        lambda: lrt.recover(Observed(weights=W), 2, published.SVDLLM()),
        "`SVDLLM` needs what the layer sees",
    ),
    "an empty calibration": (
        lambda: lrt.recover(
            Observed(weights=W, calibration=Calibration.empty(8)), 2, published.CorDA()
        ),
        "has seen no samples",
    ),
    "a mismatch": (
        lambda: lrt.recover(
            Observed(weights=W, activations=X, compressed_activations=X), 2, published.DRONE()
        ),
        "`DRONE` is for layers that see what they always saw",
    ),
    "ASVD from moments": (
        lambda: lrt.recover(Observed(weights=W, calibration=SEEN), 2, published.ASVD()),
        "`ASVD` needs mean absolute values",
    ),
    "COALA from moments": (
        lambda: lrt.recover(Observed(weights=W, calibration=SEEN), 2, published.COALA()),
        "`COALA` needs rows, not second moments",
    ),
    "exponent": (lambda: published.ASVD(exponent=0.0), "`exponent` must be a positive"),
    "floor": (lambda: published.ASVD(floor=-1.0), "`floor` must be a non-negative"),
    "shift": (lambda: published.SVDLLM(shift=np.nan), "`shift` must be a non-negative"),
    "damping": (lambda: published.CorDA(damping=0.0), "`damping` must be a positive"),
    "tolerance": (lambda: published.CorDA(tolerance=-1.0), "`tolerance` must be a positive"),
    "penalty": (lambda: published.COALA(penalty=-1.0), "`penalty` must be a non-negative"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
