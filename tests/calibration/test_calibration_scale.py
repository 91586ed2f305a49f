"""Statistics do not depend on the scale of the rows, or say that they do not fit into float64."""

from typing import Any

import jax
import numpy as np
import pytest

import lowrank_theory as lrt
from lowrank_theory.calibration import Calibration, TriangularCalibration, load_calibration
from tolerance import assert_close

pytestmark = pytest.mark.thinned(6)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((12, 5)) * np.geomspace(1, 1e-2, 5) + RANDOM.standard_normal(5)
Y = RANDOM.standard_normal((12, 5))
KINDS = (Calibration, TriangularCalibration)
POWERS = (-1000, -700, -490, -470, -300, 1, 300, 500, 520, 700, 1000)
NUMBERS: dict[str, tuple[int, Any]] = {
    "count": (0, lambda seen: seen.count),
    "mean": (1, lambda seen: seen.mean),
    "layer_input_mean": (1, lambda seen: seen.layer_input_mean),
    "triangle": (1, lambda seen: seen.triangle),
    "rows": (1, lambda seen: seen.rows()[1]),
    "gram": (2, lambda seen: seen.gram()),
    "centred gram": (2, lambda seen: seen.gram(centred=True)),
    "compressed_gram": (2, lambda seen: seen.compressed_gram()),
    "cross_gram": (2, lambda seen: seen.cross_gram(centred=True)),
    "scatter": (2, lambda seen: seen.moments().scatter),
}


def updated(kind, factor: float, compressed: bool) -> Any:
    seen = kind.empty(5, compressed=compressed)
    for batch in (X, Y):
        seen = seen.update(factor * batch, *([factor * batch[::-1]] if compressed else []))
    return seen


def merged(kind, factor: float, compressed: bool) -> Any:
    one, other = (
        kind.empty(5, compressed=compressed).update(
            factor * batch, *([factor * batch[::-1]] if compressed else [])
        )
        for batch in (X, Y)
    )
    return one.merge(other)


def streamed(kind, factor: float, compressed: bool) -> Any:
    pairs = [(factor * part, factor * part[::-1]) for part in (X, Y)]
    batches = pairs if compressed else [pair[0] for pair in pairs]
    return lrt.calibrate(batches, kind.empty(5, compressed=compressed))


def sharded(kind, factor: float, compressed: bool) -> Any:
    mesh = jax.make_mesh((1,), ("rows",))
    seen = lrt.ShardedCalibration(kind.empty(5, compressed=compressed), mesh, "rows")
    for batch in (X, Y):
        seen = seen.update(factor * batch, *([factor * batch[::-1]] if compressed else []))
    return seen.combined()


ROUTES = (updated, merged, streamed, sharded)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_powers_of_two_pass_through_exactly_or_are_refused(kind, route, compressed):
    plain = route(kind, 1.0, compressed)
    for power in POWERS:
        squares = -480 < power < 505  # where squares fit
        try:
            seen = route(kind, 2.0**power, compressed)
        except ValueError as refusal:
            assert kind is Calibration and not squares
            assert "do not fit into float64" in str(refusal)  # noqa: PT017 - some powers fit
            continue
        assert kind is TriangularCalibration or squares or power in (-490, 500)
        for name, (degree, number) in NUMBERS.items():
            if name in ("triangle", "rows") and kind is Calibration:
                continue
            wanted = np.asarray(number(plain))
            try:
                found = np.asarray(number(seen))
            except ValueError as refusal:
                assert degree == 2 and not squares
                assert "do not fit into float64" in str(refusal)  # noqa: PT017
                continue
            for _ in range(degree):
                wanted = wanted * 2.0**power
            np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_batch_leaves_everything_as_it_was(kind, tmp_path):
    seen = kind.empty(5).update(X)
    before = [np.array(leaf) for leaf in jax.tree.leaves(seen)]
    huge = 1e308 * np.sign(Y)
    for call in (
        lambda: seen.update(huge),
        lambda: lrt.calibrate([X, huge], kind.empty(5)),
        lambda: lrt.ShardedCalibration(seen, jax.make_mesh((1,), ("rows",)), "rows").update(huge),
    ):
        with pytest.raises(ValueError, match="float64"):
            call()
    for one, other in zip(before, jax.tree.leaves(seen), strict=True):
        np.testing.assert_array_equal(one, other)
    file = tmp_path / "seen"
    with pytest.raises(ValueError, match="Batch 2: "):
        lrt.calibrate([X, huge, X], kind.empty(5), file=file, save_every=1)
    kept: Any = load_calibration(file)
    for one, other in zip(before, jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-14)


def test_merging_what_does_not_fit_together():
    far, near = (Calibration.empty(5).update(f * X[:1]) for f in (1e200, -1e200))
    assert np.isfinite(np.asarray(far.mean)).all()  # one row has no scatter
    with pytest.raises(ValueError, match=r"`other` do not fit into float64"):
        far.merge(near)
    with pytest.raises(ValueError, match="do not fit into float64"):
        far.gram()


@pytest.mark.parametrize("kind", KINDS)
def test_what_update_takes_can_be_saved_and_loaded(kind, tmp_path):
    for number, scale in enumerate((1e-300, 1e-200, 1e-140, 1.0, 1e140, 1e200, 1e300)):
        try:
            seen = kind.empty(5).update(scale * X)
        except ValueError:
            assert kind is Calibration and abs(np.log10(scale)) > 150
            continue
        seen.save(tmp_path / str(number))
        again = load_calibration(tmp_path / str(number))
        for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_under_transformations_the_results_carry_it(kind):
    seen = jax.jit(lambda rows: kind.empty(5).update(rows))
    with jax.enable_x64(True):
        finite = [bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(seen(1e200 * X))]
    assert all(finite) == (kind is TriangularCalibration)


def test_a_small_column_beside_a_large_one_is_no_reason_to_refuse():
    rows = X * np.asarray([1, 1, 1e-200, 1, 1])
    gram = np.asarray(Calibration.empty(5).update(rows).gram())
    assert_close(gram[:2], (rows.T @ rows)[:2])
    assert gram[2, 2] == 0
