"""Nothing depends on the scale: results for inputs times powers of two are results times powers of
two, to the last bit.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lowrank_theory as lrt
from lowrank_theory import _scale, rank_choice
from lowrank_theory import recovery as recoveries
from lowrank_theory.certification import unit_losses
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

M, N, K, RANK = 16, 6, 5, 2
RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((M, N)) * np.geomspace(1, 1e-3, N) + 0.5
COMPRESSED = ROWS + 0.01 * RNG.standard_normal((M, N))
WEIGHTS, BIAS = RNG.standard_normal((N, K)), RNG.standard_normal(K)
OUTPUTS = ROWS @ WEIGHTS + 0.1 * RNG.standard_normal((M, K))

# (activations, weights): their products are numbers, and so are all results.
FAR = [(-1000, 40), (970, 20), (400, -1000), (-600, 900)]
SQUARES = [(-450, 900), (450, -900), (0, 1000)]  # the squares of activations are numbers, too


def layer(a: int, w: int, *, bias: bool = False, seen: str = "rows", dtype: str = "float64"):
    rows, compressed = (np.ldexp(x, a).astype(dtype) for x in (ROWS, COMPRESSED))
    weights, b = np.ldexp(WEIGHTS, w).astype(dtype), np.ldexp(BIAS, a + w).astype(dtype)
    given = {"weights": weights, "bias": b if bias else None}
    if seen == "rows":
        return lrt.Observed(**given, activations=rows)
    if seen == "compressed rows":
        return lrt.Observed(**given, activations=rows, compressed_activations=compressed)
    if seen == "outputs":
        outputs = np.ldexp(OUTPUTS, a + w).astype(dtype)
        return lrt.Observed(activations=rows, outputs=outputs)
    kind = lrt.TriangularCalibration if "triangle" in seen else lrt.Calibration
    both = "compressed" in seen
    calibration = kind.empty(N, compressed=both).update(rows, compressed if both else None)
    return lrt.Observed(**given, calibration=calibration)


def numbers(found: lrt.Recovery) -> dict[str, tuple[np.ndarray, int, int]]:
    """Each with the powers of (activations, weights) in its units."""
    of_outputs = int(not isinstance(found.method, lrt.TruncatedSVD))
    named = {"left": (found.factors.left, 0, 1), "right": (found.factors.right, 0, 0)}
    if found.bias is not None:
        named["bias"] = found.bias, 1, 1
    certificate = found.certificate
    if isinstance(certificate, recoveries.Certificate):
        for name in ("optimal_error", "excess_bound", "target_norm"):
            named[name] = getattr(certificate, name), of_outputs, 1
    elif isinstance(certificate, recoveries.DualityGap):
        named["gap"] = certificate.gap, 2, 2
    named["certified"] = certificate.certified, 0, 0
    return {name: (np.asarray(value, float), a, w) for name, (value, a, w) in named.items()}


def same(one: lrt.Recovery, far: lrt.Recovery, a: int, w: int) -> None:
    for name, (value, in_a, in_w) in numbers(one).items():
        moved = numbers(far)[name][0]
        with np.errstate(over="ignore"):
            wanted = np.ldexp(value, in_a * a + in_w * w)
        if name == "excess_bound" and wanted < _scale.SMALLEST:
            wanted = np.asarray(_scale.SMALLEST)  # rounded up
        lost = (np.abs(wanted) < _scale.SMALLEST) | np.isinf(wanted)
        # Exactly, but for parts of a sum that lie below the normal numbers.
        missed = np.abs(moved[~lost] - wanted[~lost])
        assert np.all(missed < _scale.SMALLEST), (name, moved, wanted)


WEIGHTED = [("rows", FAR), ("compressed rows", FAR), ("triangle", FAR), ("moments", SQUARES)]
WEIGHTED += [("compressed triangle", FAR), ("compressed moments", SQUARES)]


@pytest.mark.parametrize("bias", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize(("seen", "powers"), WEIGHTED, ids=[seen for seen, _ in WEIGHTED])
def test_the_data_driven_layer(seen, powers, bias):
    method = lrt.ActivationWeighted()
    one = layer(0, 0, seen=seen, bias=bias)
    for a, w in powers:
        far = layer(a, w, seen=seen, bias=bias)
        same(lrt.recover(one, RANK, method), lrt.recover(far, RANK, method), a, w)
        same(lrt.every_rank(one, method).at(3), lrt.every_rank(far, method).at(3), a, w)


HOMOGENEOUS = {
    "TruncatedSVD": (lambda a, w: lrt.TruncatedSVD(), "rows"),
    "Ridge": (lambda a, w: lrt.Ridge(0.0), "rows"),
    "Randomized": (lambda a, w: lrt.Randomized(key=jax.random.key(0)), "rows"),
    "SingularValueThreshold": (
        lambda a, w: lrt.SingularValueThreshold(float(np.ldexp(0.7, a + w))),
        "outputs",
    ),
    "RankPenalised": (lambda a, w: recoveries.RankPenalised(0.0), "outputs"),
    "OptimalShrinkage": (lambda a, w: recoveries.OptimalShrinkage(), "outputs"),
    "NuclearNormRelu": (
        lambda a, w: lrt.NuclearNormRelu(float(np.ldexp(4.0, a + w))),
        "outputs",
    ),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_every_method_without_a_unit_of_its_own(name):
    make, seen = HOMOGENEOUS[name]
    one = lrt.recover(layer(0, 0, seen=seen), RANK, make(0, 0))
    for a, w in [(-900, 400), (500, -100), (0, 400)]:
        same(one, lrt.recover(layer(a, w, seen=seen), RANK, make(a, w)), a, w)


OF_OUTPUTS = {
    "ActivationWeighted": lrt.ActivationWeighted(),
    "SingularValueThreshold": lrt.SingularValueThreshold(0.7),
    "RankPenalised": recoveries.RankPenalised(0.3),
    "OptimalShrinkage": recoveries.OptimalShrinkage(),
    "NuclearNormBall": recoveries.NuclearNormBall(2.0),
    "NuclearNormRelu": lrt.NuclearNormRelu(4.0),
    "CensoredLikelihood": recoveries.CensoredLikelihood(0.5, 4.0, 0.7),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OF_OUTPUTS)
def test_what_is_fitted_to_outputs_knows_no_units_of_single_inputs(name, dtype):
    """Else the rank would be cut of directions that are weak beside an outlier channel."""
    rows, outputs = ROWS.astype(dtype), np.maximum(OUTPUTS, 0).astype(dtype)
    powers = np.array([40, 0, -3, 30, 25, -30])[:N]
    one, other = (
        lrt.recover(lrt.Observed(activations=seen, outputs=outputs), K, OF_OUTPUTS[name])
        for seen in (rows, np.ldexp(rows, powers))
    )
    left = np.ldexp(np.asarray(other.factors.left, float), powers[:, None])
    product = left @ np.asarray(other.factors.right, float)
    wanted = np.asarray(one.factors.left, float) @ np.asarray(one.factors.right, float)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(product, wanted, atol=1e4 * eps * np.abs(wanted).max())
    assert bool(one.certificate.certified) or dtype == "float32"
    if isinstance(one.certificate, recoveries.Certificate):
        assert isinstance(other.certificate, recoveries.Certificate)
        assert other.certificate.optimal_error == pytest.approx(one.certificate.optimal_error)


@pytest.mark.parametrize("seen", ["rows", "triangle"])
def test_float32_down_to_its_subnormal_numbers(seen):
    method = lrt.ActivationWeighted()
    one = lrt.recover(layer(0, 0, seen=seen, dtype="float32"), RANK, method)
    for a, w in [(-120, 100), (110, -100)]:
        far = layer(a, w, seen=seen, dtype="float32")
        exact = np.array_equal(np.ldexp(ROWS.astype("float32"), a), np.ldexp(ROWS, a).astype("f4"))
        assert exact  # so that the two layers are one
        same(one, lrt.recover(far, RANK, method), a, w)


@pytest.mark.parametrize("power", [-500, -200, 200, 500])
def test_ranks_and_errors(power):
    one, far = layer(0, 0, bias=True), layer(power, power, bias=True)
    assert rank_choice.energy(far, 0.9) == rank_choice.energy(one, 0.9)
    assert rank_choice.hard_threshold(far) == rank_choice.hard_threshold(one)
    assert rank_choice.screenot(far, 2) == rank_choice.screenot(one, 2)
    found, moved = (lrt.recover(each, RANK, lrt.ActivationWeighted()) for each in (one, far))
    error = float(lrt.fitting_error(found, one))
    assert float(lrt.fitting_error(moved, far)) == np.ldexp(error, 2 * power)
    relative = float(lrt.relative_fitting_error(found, one))
    assert float(lrt.relative_fitting_error(moved, far)) == relative


@pytest.mark.parametrize("power", [-1000, -600, 600, 1000])
def test_losses(power):
    outputs, others = OUTPUTS, OUTPUTS + 0.1
    wanted = unit_losses(outputs, others)
    assert_close(unit_losses(np.ldexp(outputs, power), np.ldexp(others, power)), wanted)
    held_out = RNG.standard_normal((40, N))
    one, far = layer(0, 0, bias=True), layer(power, 0, bias=True)
    certificates = [
        lrt.certify(
            each,
            lrt.recover(each, RANK, lrt.ActivationWeighted()),
            held_out=np.ldexp(held_out, p),
            failure_probability=0.05,
        )
        for each, p in ((one, 0), (far, power))
    ]
    assert certificates[1].bound == approx(certificates[0].bound)


@pytest.mark.parametrize("power", [-1074, -1060, -1022, -1000, -300, 0, 300, 1000, 1020])
def test_units_count_subnormal_numbers(power):
    numbers = np.ldexp(RNG.standard_normal((4, 3)), power)
    exact = int(np.frexp(np.max(np.abs(numbers)))[1]) - 1
    with jax.enable_x64(True):
        for run in (_scale.unit, jax.jit(_scale.unit)):
            scaled, found = run(numbers)
            assert int(found) == exact
            np.testing.assert_array_equal(scaled, np.ldexp(numbers, -exact))
        if power > -1022:
            np.testing.assert_array_equal(_scale.times_power(scaled, exact), numbers)
            size = np.ldexp(np.linalg.norm(np.ldexp(numbers, -exact)), exact)
            assert float(_scale.norm(numbers)) == approx(size, side=1)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_units_of_narrow_numbers_are_those_of_the_same_numbers_in_float64(dtype):
    narrow = np.asarray([3e-5, -7.0, 0.25], dtype)
    with jax.enable_x64(True):
        found, power = _scale.unit(jnp.asarray(narrow))
        expected, same = _scale.unit(jnp.asarray(narrow.astype(np.float64)))
        np.testing.assert_array_equal(found, expected)
    assert int(power) == int(same) == 2


@pytest.mark.parametrize("special", [0.0, np.nan, np.inf])
def test_units_of_what_has_no_size(special):
    with jax.enable_x64(True):
        assert int(_scale.exponent(np.full(3, special))) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2"])
def test_widening_loses_nothing(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    numbers = (RNG.standard_normal(400) * np.geomspace(1e-46, 1e3, 400)).astype(kind)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(_scale.widened(numbers), numbers.astype(float))
        slope = jax.grad(lambda x: jnp.sum(_scale.widened(x)))(jnp.zeros(3, kind))
        np.testing.assert_array_equal(np.asarray(slope, float), 1)
