"""Bad input at every public door: one `ValueError` that names the argument and what came."""

import math
from typing import Any

import jax
import numpy as np
import pytest

import lowrank_theory as lrt
import unhooked
from lowrank_theory import Calibration, Observed, Setting
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.lookup import LookUp
from lowrank_theory.quantisation import GPTQ
from tolerance import assert_close

pytestmark = pytest.mark.thinned(4)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((20, 8))
W = RANDOM.standard_normal((8, 6))
Y = X @ W
NAN, INF, INT = X.copy(), W.copy(), np.ones((8, 6), int)
NAN[3, 4], INF[0, :2] = np.nan, [np.inf, -np.inf]
SIZES = {"samples": 20, "inputs": 8, "outputs": 6, "rank": 2}
KEY = jax.random.key(0)
LAYER = Observed(weights=W, activations=X)
WEIGHTED = lrt.ActivationWeighted()


def seen(*arguments, compressed=False):
    return Calibration.empty(8, compressed=compressed).update(*arguments)


def recover(observed: Any = LAYER, rank: Any = 2, method: Any = WEIGHTED):
    return lrt.recover(observed, rank=rank, method=method)


def draw(**changes):
    return Setting(**{**SIZES, **changes}).draw(key=KEY)


OBSERVED = {
    "nothing": ({}, "Give `weights`, or `activations` together with `outputs`"),
    "activations alone": ({"activations": X}, "Give `weights`"),
    "vector of weights": ({"weights": W[0]}, r"`weights` must have shape .*; got shape \(6,\)"),
    "stack of weights": ({"weights": W[None]}, r"`weights` must have .*; got shape \(1, 8, 6\)"),
    "integer weights": ({"weights": INT}, "`weights` must be floating point; got dtype int64"),
    "boolean weights": ({"weights": INT > 0}, "`weights` must be floating .* got dtype bool"),
    "complex weights": ({"weights": W * 1j}, "`weights` must be floating .* got dtype complex"),
    "strings": ({"weights": [["a"]]}, "`weights` must be floating point; got dtype <U1"),
    "empty weights": ({"weights": W[:0]}, r"`weights` is empty: got shape \(0, 6\)"),
    "infinite weights": ({"weights": INF}, "`weights` has 2 non-finite entries"),
    "NaN activations": ({"weights": W, "activations": NAN}, "`activations` has 1 non-finite"),
    "empty batch": ({"weights": W, "activations": X[:0]}, "`activations` is empty"),
    "integer activations": (
        {"weights": W, "activations": X.astype(int)},
        "`activations` must be floating point; got dtype int64",
    ),
    "other inputs": (
        {"weights": W, "activations": X[:, :7]},
        "`activations` has 7 inputs, but `weights` has 8",
    ),
    "other compressed inputs": (
        {"weights": W, "activations": X, "compressed_activations": X[:, :7]},
        "`compressed_activations` has 7 inputs, but `weights` has 8",
    ),
    "other compressed samples": (
        {"weights": W, "activations": X, "compressed_activations": X[:9]},
        "`compressed_activations` has 9 samples, but `activations` has 20",
    ),
    "other output samples": (
        {"weights": W, "activations": X, "outputs": Y[:9]},
        "`outputs` has 9 samples, but `activations` has 20",
    ),
    "other outputs": (
        {"weights": W, "activations": X, "outputs": Y[:, :5]},
        "`outputs` has 5 outputs, but `weights` has 6",
    ),
    "other bias": ({"weights": W, "bias": np.ones(5)}, "`bias` has 5 outputs, but `weights` has 6"),
    "matrix of biases": ({"weights": W, "bias": np.ones((1, 6))}, r"`bias` .* got shape \(1, 6\)"),
    "compressed without rows": (
        {"weights": W, "compressed_activations": X},
        "`compressed_activations` and `outputs` need `activations`",
    ),
    "both rows and calibration": (
        {"weights": W, "activations": X, "calibration": seen(X)},
        "Give `activations` or `calibration`, not both",
    ),
    "calibration of another layer": (
        {"weights": W.T, "calibration": seen(X)},
        "`calibration` has 8 inputs, but `weights` has 6",
    ),
}

CALLS = {
    # recover
    "rank zero": (lambda: recover(rank=0), "`rank` must be an integer from 1 to 6 .* got 0"),
    "negative rank": (lambda: recover(rank=-1), "`rank` must be .* from 1 to 6 .* got -1"),
    "rank above": (lambda: recover(rank=7), "`rank` must be .* from 1 to 6 .* 8 x 6 .* got 7"),
    "boolean rank": (lambda: recover(rank=True), "`rank` must be an integer .* got True"),
    "weighted without rows": (
        lambda: recover(Observed(weights=W)),
        "`ActivationWeighted` needs what the layer sees",
    ),
    "svd without weights": (
        lambda: recover(Observed(activations=X, outputs=Y), method=lrt.TruncatedSVD()),
        r"`TruncatedSVD` compresses weights: give `Observed\(weights=...\)`",
    ),
    "ridge without weights": (
        lambda: recover(Observed(activations=X, outputs=Y), method=lrt.Ridge(0.1)),
        "`Ridge` pulls towards the trained weights",
    ),
    "threshold without rows": (
        lambda: recover(Observed(weights=W), method=lrt.SingularValueThreshold(1.0)),
        "This needs `activations`",
    ),
    "threshold with a bias": (
        lambda: recover(
            Observed(weights=W, activations=X, bias=W[0]), method=lrt.SingularValueThreshold(1.0)
        ),
        "`SingularValueThreshold` has no affine version: leave `bias` out",
    ),
    "empty calibration": (
        lambda: recover(Observed(weights=W, calibration=Calibration.empty(8))),
        "`calibration` has seen no samples yet: call `update` first",
    ),
    "negative ridge": (lambda: lrt.Ridge(-1.0), "`penalty` must be .* got -1.0"),
    "NaN ridge": (lambda: lrt.Ridge(math.nan), "`penalty` must be .* got nan"),
    "negative threshold": (
        lambda: lrt.SingularValueThreshold(-1.0),
        "`threshold` must be a non-negative finite number; got -1.0",
    ),
    "infinite threshold": (
        lambda: lrt.SingularValueThreshold(math.inf),
        "`threshold` must be .* got inf",
    ),
    "integer factors": (
        lambda: lrt.LowRank(INT, INT.T),
        "`left` must be .* floats; got int64",
    ),
    "factors that do not multiply": (lambda: lrt.LowRank(W, W), "`left` and `right` must be"),
    # calibration
    "no inputs": (lambda: Calibration.empty(0), "`inputs` must be an integer >= 1; got 0"),
    "vector batch": (lambda: seen(X[0]), r"`activations` must have shape .* got shape \(8,\)"),
    "empty update": (lambda: seen(X[:0]), r"`activations` is empty: got shape \(0, 8\)"),
    "NaN batch": (lambda: seen(NAN), "`activations` has 1 non-finite entries"),
    "integer batch": (lambda: seen(X.astype(int)), "`activations` must be floating .* int64"),
    "batch of another layer": (
        lambda: seen(X[:, :7]),
        "`activations` has 7 inputs, but `calibration` has 8",
    ),
    "unannounced compressed batch": (
        lambda: seen(X, X),
        "`compressed_activations` must come with every batch or with none",
    ),
    "missing compressed batch": (
        lambda: seen(X, compressed=True),
        "`compressed_activations` must come with every batch or with none",
    ),
    "NaN compressed batch": (
        lambda: seen(X, NAN, compressed=True),
        "`compressed_activations` has 1 non-finite",
    ),
    "other compressed batch": (
        lambda: seen(X, X[:9], compressed=True),
        "`compressed_activations` has 9 samples, but `activations` has 20",
    ),
    "compressed batch of another layer": (
        lambda: seen(X, X[:, :7], compressed=True),
        "`compressed_activations` has 7 inputs, but `activations` has 8",
    ),
    "merge of other inputs": (
        lambda: seen(X).merge(Calibration.empty(7)),
        "`other` has 7 inputs, but `self` has 8",
    ),
    "merge of other kinds": (
        lambda: seen(X).merge(Calibration.empty(8, compressed=True)),
        "`other` must hold compressed activations exactly if",
    ),
    # settings and their laws
    "no samples": (lambda: draw(samples=0), "`samples` must be an integer >= 1; got 0"),
    "setting of too high a rank": (lambda: draw(rank=7), "`rank` must be .* from 1 to 6"),
    "negative noise": (lambda: noise.Gaussian(-0.1), "`scale` must be a non-negative .* got -0.1"),
    "no signs": (lambda: noise.Rademacher(0.0), "`scale` must be a positive .* got 0.0"),
    "uniform": (lambda: noise.Uniform(math.nan), "`scale` must be a positive .* got nan"),
    "Laplace": (lambda: noise.Laplace(-1.0), "`scale` must be a positive .* got -1.0"),
    "infinite variance": (lambda: noise.StudentT(1.0, 2.0), "`degrees` must exceed 2.* got 2.0"),
    "no spread": (lambda: noise.Heteroskedastic(1.0, 0.0), "`spread` must be a positive"),
    "correlation": (lambda: noise.Correlated(1.0, 1.0), "`correlation` must lie strictly .* 1.0"),
    "fraction": (lambda: noise.SparseOutliers(1.0, 1.5), "`fraction` must lie between .* got 1.5"),
    "one bit": (lambda: noise.QuantiserResidual(1), "`bits` must be .* from 2 to 16; got 1"),
    "no opposition": (lambda: noise.Opposing(1.0, 0), "`rank` must be an integer >= 1; got 0"),
    "opposition without room": (
        lambda: draw(noise=noise.Opposing(1.0, 4)),
        "`rank` must be an integer from 1 to 3; got 4",
    ),
    "negative decay": (lambda: spectra.PowerLaw(-1.0), "`decay` must be .* got -1.0"),
    "negative rate": (lambda: spectra.Exponential(-1.0), "`rate` must be .* got -1.0"),
    "no spikes": (lambda: spectra.Spiked(0), "`spikes` must be an integer >= 1; got 0"),
    "inverted spikes": (lambda: spectra.Spiked(1, 0.5), "`ratio` must be at least 1; got 0.5"),
    "no values": (lambda: spectra.Given(()), "`given` is empty"),
    "negative values": (lambda: spectra.Given((1.0, -1.0)), "`given` must be .* got -1.0"),
    "zeros alone": (lambda: spectra.Given((0.0,)), "`given` must be a positive .* got 0.0"),
    "no signal": (lambda: activations.LowRankPlusNoise(0), "`signal_rank` must be .* got 0"),
    "signal too large": (
        lambda: draw(activations=activations.LowRankPlusNoise(9)),
        "`signal_rank` must be an integer from 1 to 8; got 9",
    ),
    "too many massive directions": (
        lambda: draw(activations=activations.MassiveDirections(9)),
        "`count` must be an integer from 1 to 8; got 9",
    ),
    "no width": (lambda: activations.ReluOutputs(0), "`width` must be an integer >= 1; got 0"),
    "serial": (lambda: activations.SerialCorrelation(-1.0), "`correlation` must lie .* got -1.0"),
    "deficient above": (
        lambda: draw(activations=activations.RankDeficient(9)),
        "`rank` must be an integer from 1 to 8; got 9",
    ),
    "no perturbation": (lambda: activations.Perturbed(0.0), "`relative` must be .* got 0.0"),
    "target of no scale": (lambda: targets.ExactRank(scale=0.0), "`scale` must be .* got 0.0"),
    "ball exponent": (lambda: targets.SchattenBall(2.0), "`exponent` must lie .* got 2.0"),
    "ball radius": (lambda: targets.SchattenBall(1.0, -1.0), "`radius` must be .* got -1.0"),
    "no tilt": (lambda: targets.OpposedToTheData(0.0), "`tilt` must be a positive .* got 0.0"),
    # problems
    "layer of rank zero": (lambda: lrt.Layer(LAYER, 0), "`rank` must be .* from 1 to 6"),
    "stated truth of another shape": (
        lambda: lrt.Problem.stated(LAYER, W.T, 2),
        "`target_weights` has 6 inputs, but `observed` has 8",
    ),
    "NaN truth": (lambda: lrt.Problem.stated(LAYER, INF, 2), "`target_weights` has 2 non-finite"),
    # verify
    "no trials": (
        lambda: lrt.verify(lrt.theorems.best_possible, trials=0, key=KEY),
        "`trials` must be an integer .* got 0",
    ),
    "certain failure": (
        lambda: lrt.verify(
            lrt.theorems.planted_rank.gaussian, trials=10, key=KEY, failure_probability=1.0
        ),
        "`failure_probability` must lie strictly between 0 and 1; got 1.0",
    ),
    "certainty": (
        lambda: lrt.verify(lrt.theorems.planted_rank.gaussian, trials=10, key=KEY, confidence=1.0),
        "`confidence` must lie strictly between 0 and 1; got 1.0",
    ),
    "bound of an array": (
        lambda: lrt.theorems.planted_rank.gaussian.bound(W),
        "`instance` must be a `Problem` or a `Layer`; got ndarray",
    ),
    "bound without truth": (
        lambda: lrt.theorems.planted_rank.gaussian.bound(lrt.Layer(LAYER, 2)),
        "needs the truth, which a `Layer` does not have",
    ),
}

# The suite checks types as it imports the library, and would object first: these run without.
WRONG_TYPES = {
    "mesh of a number": (
        lambda: lrt.ShardedCalibration(Calibration.empty(8), 8, "rows"),  # pyright: ignore[reportArgumentType]
        "`mesh` must be a mesh .* got int",
    ),
    "class of calibration": (
        lambda: lrt.ShardedCalibration(Calibration, 8, "rows"),  # pyright: ignore[reportArgumentType]
        "`calibration` must be a calibration",
    ),
    "fractional rank": (lambda: recover(rank=2.0), "`rank` must be an integer .* got 2.0"),
    "rank of words": (lambda: recover(rank="2"), "`rank` must be an integer .* got '2'"),
    "no rank": (lambda: recover(rank=None), "`rank` must be an integer .* got None"),
    "array certified": (
        lambda: lrt.certify(W, recover(), held_out=X, failure_probability=0.05),  # pyright: ignore[reportArgumentType]
        "`observed` must be an `Observed`; got ndarray",
    ),
    "factors certified": (
        lambda: lrt.certify(LAYER, recover().factors, held_out=X, failure_probability=0.05),  # pyright: ignore[reportArgumentType]
        "`recovery` must be a `Recovery`; got LowRank",
    ),
    "array observed": (lambda: recover(W), "`observed` must be an `Observed`; got ndarray"),
    "array swept": (
        lambda: lrt.every_rank(W, WEIGHTED),  # pyright: ignore[reportArgumentType]
        "`observed` must be an `Observed`; got ndarray",
    ),
    "fractional swept rank": (
        lambda: lrt.every_rank(LAYER, WEIGHTED).at(2.0),  # pyright: ignore[reportArgumentType]
        "`rank` must be .* got 2.0",
    ),
    "class of method": (
        lambda: recover(method=lrt.ActivationWeighted),
        "`method` must be a method such as .*; got <class",
    ),
    "name of method": (
        lambda: recover(method="svd"),
        "`method` must be a method such as .*; got 'svd'",
    ),
    "levels by number": (
        lambda: GPTQ(3),  # pyright: ignore[reportArgumentType]
        "`levels` must be a quantiser such as .*; got 3",
    ),
    "order by number": (
        lambda: LookUp(order=3),  # pyright: ignore[reportArgumentType]
        "`order` must be one such as .*; got 3",
    ),
    "nonlinearity by number": (
        lambda: LookUp(through=3),  # pyright: ignore[reportArgumentType]
        "`through` must be one such as .*; got 3",
    ),
    "fractional inputs": (lambda: Calibration.empty(8.0), "`inputs` must be .* got 8.0"),  # pyright: ignore[reportArgumentType]
    "fractional outputs": (lambda: draw(outputs=6.5), "`outputs` must be .* got 6.5"),
    "fractional trials": (
        lambda: lrt.verify(lrt.theorems.best_possible, trials=1.5, key=KEY),  # pyright: ignore[reportArgumentType]
        "`trials` must be an integer .* got 1.5",
    ),
    "theorem by name": (
        lambda: lrt.verify("best_possible", trials=10, key=KEY),  # pyright: ignore[reportArgumentType]
        "`theorem` .* 'best_possible'",
    ),
}


@pytest.mark.parametrize(("fields", "message"), OBSERVED.values(), ids=OBSERVED.keys())
def test_observed(fields, message):
    with pytest.raises(ValueError, match=message):
        Observed(**fields)


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS.keys())
def test_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types():
    unhooked.check("test_bad_input")


def check_wrong_types():
    for name, (call, message) in WRONG_TYPES.items():
        print(name)
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("observe", [np.asarray, jax.numpy.asarray], ids=["NumPy", "JAX"])
def test_static_facts_are_found_under_jit_too(observe):
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 6"):
        jax.jit(lambda w: recover(Observed(weights=w), rank=7))(observe(W, np.float32))
    with pytest.raises(ValueError, match="must be floating point"):
        jax.jit(lambda w: Observed(weights=w))(observe(INT, np.int32))


# --- degenerate, and right ------------------------------------------------------------------------

METHODS = {
    "svd": lrt.TruncatedSVD(),
    "weighted": WEIGHTED,
    "ridge": lrt.Ridge(2.0),
    "threshold": lrt.SingularValueThreshold(1.0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("zero", ["weights", "activations", "compressed_activations", "all"])
def test_zeros_have_an_answer(name, zero):
    method = METHODS[name]
    whole = {"weights": W, "activations": X, "compressed_activations": X}
    layer: Any = {part: a * (zero not in (part, "all")) for part, a in whole.items()}
    observed = Observed(**layer)
    recovery = recover(observed, method=method).require()
    dense = np.asarray(recovery.factors.materialise())
    assert np.isfinite(dense).all()
    if zero in ("weights", "all"):
        assert not dense.any()
    error = float(np.asarray(lrt.fitting_error(recovery, observed)))
    relative = float(np.asarray(lrt.relative_fitting_error(recovery, observed)))
    outputs = np.linalg.norm(layer["activations"] @ layer["weights"])
    if zero == "compressed_activations":
        assert error == pytest.approx(outputs)
        assert relative == pytest.approx(1)
    elif zero != "activations" or name in ("weighted", "threshold"):  # the others see the weights
        assert error <= 1e-12
        assert relative <= 1e-12


@pytest.mark.parametrize("name", ["weighted", "ridge"])
@pytest.mark.parametrize("bias", [None, np.ones(6)])
@pytest.mark.parametrize("compressed", [False, True])
def test_zero_moments_have_an_answer(compressed, bias, name):
    for weights, rows in ((W, 0 * X), (0 * W, X), (0 * W, 0 * X)):
        calibration = seen(*([rows] * (1 + compressed)), compressed=compressed)
        observed = Observed(weights=weights, calibration=calibration, bias=bias)
        recovery = recover(observed, method=METHODS[name]).require()
        dense = np.asarray(recovery.factors.materialise())
        outputs = rows @ dense + (0 if recovery.bias is None else np.asarray(recovery.bias))
        np.testing.assert_allclose(
            outputs, 0 if bias is None else np.tile(bias, (20, 1)), atol=1e-12
        )


def test_a_single_sample_and_a_single_entry():
    one = recover(Observed(weights=W, activations=X[:1]), rank=1).require()
    assert_close(X[:1] @ np.asarray(one.factors.materialise()), X[:1] @ W)
    entry = recover(Observed(weights=W[:1, :1], activations=X[:1, :1]), rank=1).require()
    assert_close(entry.factors.materialise(), W[:1, :1], side=1)
    affine = recover(Observed(weights=W, activations=X[:1], bias=W[0]), rank=1)
    assert affine.bias is not None
    outputs = X[:1] @ np.asarray(affine.factors.materialise()) + np.asarray(affine.bias)
    assert_close(outputs, X[:1] @ W + W[0])
