"""What a certificate promises holds for what is returned, in every dtype that the layer may have.

Layers, routes and the judge are those of `benchmarks/promises.py`; the judge is tested here too.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
DTYPES = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
QUICK_ROUTES = ("rows", "moments", "triangle", "compressed rows", "TruncatedSVD")
AFFINE = 2  # of the groups of layers, an affine one
QUICK_CASES = (8, 14, 20, 38, 56)  # of that group: the last is resolved by moments, too

pytestmark = [
    pytest.mark.thinned(5),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="the judge needs 80-bit floats"),
]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    names = ("_exact", "_hostile", "promises")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def cases(promises: ModuleType, group: int, count: int) -> tuple[int, ...]:
    return tuple(group + len(promises.GROUPS) * place for place in range(count))


def broken(promises: ModuleType, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What should be empty: rows in which a promise was broken, with the numbers of the cases."""
    words = ("route", "dtype", "way", "words", "broken", *promises.BROKEN)
    return [
        {word: row[word] for word in words if row[word]}
        for row in rows
        if any(row[what] for what in promises.BROKEN)
    ]


@pytest.mark.parametrize("route", QUICK_ROUTES)
def test_certificates_are_about_what_is_returned(route: str, modules: dict[str, ModuleType]):
    promises = modules["promises"]
    tasks = [
        promises.Task(dtype, AFFINE, QUICK_CASES, (route,), ways=("alone",), spacing=1)
        for dtype in DTYPES
    ]
    rows = [row for task in tasks for row in promises.measure(task)]
    assert broken(promises, rows) == []
    accurate = [row for row in rows if row["dtype"] == "float64"]
    assert sum(row["certified"] for row in accurate) > 0


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 1, AFFINE])
def test_every_route_keeps_its_word(group: int, modules: dict[str, ModuleType]):
    promises = modules["promises"]
    numbers, routes = cases(promises, group, 24), tuple(promises.routes())
    tasks = [promises.Task(dtype, group, numbers, routes) for dtype in DTYPES]
    rows = [row for task in tasks for row in promises.measure(task)]
    jax.clear_caches()  # too many programs do not fit in a process
    for dtype in DTYPES:
        assert {row["route"] for row in rows if row["dtype"] == dtype} == set(routes)
    assert broken(promises, rows) == []


def test_the_judge_finds_a_lie(modules: dict[str, ModuleType]):
    promises, exact = modules["promises"], modules["_exact"]
    *_, rank, affine = promises.GROUPS[AFFINE]
    layers = promises.stack([QUICK_CASES[1]], np.float64)
    route = promises.routes()["TruncatedSVD"]
    returned, _ = promises.alone(route, layers, [0], rank, affine)
    seen = exact.Seen(layers["weights"])
    best = exact.optimum(seen, rank)

    def found(**changes: Any) -> set[str]:
        said = promises.judged(route, seen, best, dataclasses.replace(returned, **changes))
        return {name for name in (*promises.BROKEN, "missed") if name in said and said[name].any()}

    assert found() == set()
    assert found(left=1.1 * returned.left) == {"certified_wrong", "bound_violated"}
    assert found(left=np.full_like(returned.left, np.nan)) >= {"certified_wrong", "finite_wrong"}
    assert found(optimal_error=2 * returned.optimal_error) == {"error_off"}
    assert found(certified=np.array([False])) == {"missed"}


def test_singular_values_are_known_beyond_float64(modules: dict[str, ModuleType]):
    exact = modules["_exact"]
    rng = np.random.default_rng(0)
    for shape in ((5, 9, 7), (5, 7, 9), (2, 6, 6)):
        matrices = rng.standard_normal(shape)
        found = exact.singular_values(matrices.astype(np.longdouble))
        wanted = np.linalg.svd(matrices, compute_uv=False)
        np.testing.assert_allclose(found.astype(float), wanted, rtol=1e-12)
    # A rotated pair (1, 1e-15) of which float64 sees the second to one digit: sqrt(2) and its
    # multiple are the singular values of [[1, 1], [1, 1 + t]], up to t^2.
    tiny = np.longdouble(2) ** -50
    one = np.ones((), np.longdouble)
    found = exact.singular_values(np.array([[[one, one], [one, one + tiny]]]))[0]
    np.testing.assert_allclose(float(found[1] / (tiny / 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(float(found[0] * found[1] / tiny), 1, rtol=1e-4)


@pytest.mark.parametrize("count", [1, pytest.param(9, marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_judge_knows_its_own_rounding(count: int, modules: dict[str, ModuleType]):
    """Eighty decimal digits agree with it to within the doubt that it states."""
    promises, exact = modules["promises"], modules["_exact"]
    rng = np.random.default_rng(0)
    groups = range(len(promises.GROUPS)) if count > 1 else (5,)
    for group in groups:
        _, inputs, outputs, rank, affine = promises.GROUPS[group]
        layers = promises.stack(list(cases(promises, group, count)), np.float64)
        left = rng.standard_normal((count, inputs, rank))
        right = rng.standard_normal((count, rank, outputs))
        bias = rng.standard_normal((count, outputs)) if affine else None
        for objective, of in promises.OBJECTIVES.items():
            seen = of(layers, affine)
            best, precise = (exact.optimum(seen, rank, decimals=each) for each in (False, True))
            assert np.all(abs(best.value - precise.value) <= best.doubt), objective
            assert np.all(abs(best.target - precise.target) <= best.doubt), objective
            shift = None if objective == "weights" else bias
            errors = [exact.error(seen, left, right, shift, decimals=d) for d in (False, True)]
            assert np.all(abs(errors[0].value - errors[1].value) <= errors[0].doubt), objective
            assert np.median(best.doubt / best.target) <= 1e-12
