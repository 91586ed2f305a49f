"""Methods compared on one small network: what the rows say is what the networks are, and the study
goes on where it was stopped.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.approximations import Quantised, Sparse
from lowrank_theory.networks import Comparison, compare
from lowrank_theory.plotting import compare as drawn
from lowrank_theory.reports import compare as report
from lowrank_theory.studies import _at_all_sizes
from lowrank_theory.studies.compare import FAMILIES, LADDERS
from studied import TINY

module = sys.modules[compare.__module__]  # its name in the package is the function's

BUDGETS = (0.3, 0.6)
SOME = ("low rank", "few bits", "few entries")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("points")


@pytest.fixture(scope="module")
def found(folder) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SECONDS", 0.02)
        return compare(TINY, budgets=BUDGETS, families=SOME, seed=0, folder=folder)


@pytest.fixture(scope="module")
def layers() -> _at_all_sizes.Layers:
    return _at_all_sizes.Layers(TINY.load())


def test_every_method_has_a_row_at_every_budget_or_says_why(found):
    methods = {method for family in SOME for method in FAMILIES[family]}
    there = [(row.method, row.budget) for row in (*found.networks, *found.unmet)]
    assert sorted(there) == sorted((method, budget) for method in methods for budget in BUDGETS)
    for row in found.networks:
        assert 0 < row.values <= row.ideal <= row.budget
        assert row.low <= row.difference <= row.high
        assert row.metric == pytest.approx(found.metric.value + row.difference)
    assert all("cannot be met" in row.why for row in found.unmet)


def test_places_are_what_bits_and_values_differ_by(found):
    rows = {row.method: row for row in found.layers if row.layer == ".weights[0]"}
    assert rows["sparse"].ideal > rows["sparse"].values
    for method in ("data-agnostic", "data-driven", "rounded", "gptq"):
        assert rows[method].ideal == rows[method].values


@pytest.mark.parametrize(
    "method", ["data-driven", "rounded", "sparse", pytest.param("look-up", marks=pytest.mark.slow)]
)
def test_errors_and_outputs_are_those_of_the_network_as_stored(layers, method):
    """By products of the rows themselves, and by the packed network."""
    loaded = layers.loaded
    sized = layers.at_all_sizes(LADDERS[method])
    taken = {path: each.sizes[len(each.sizes) // 2] for path, each in sized.items()}
    made = {path: sized[path].fit.at(size) for path, size in taken.items()}
    (batch,) = loaded.held_out
    function, parameters = layers.network(made)
    packed, stored = layers.packed(made)
    np.testing.assert_allclose(
        jax.jit(function)(parameters, batch), jax.jit(packed)(stored, batch), rtol=1e-4, atol=1e-4
    )
    first = made[".weights[0]"].approximation
    weights = np.asarray(loaded.parameters.weights[0], float)
    outputs = batch @ weights
    expected = np.linalg.norm(outputs - np.asarray(first.apply(batch))) / np.linalg.norm(outputs)
    errors = sized[".weights[0]"].errors(taken[".weights[0]"])
    assert errors.outputs == pytest.approx(expected, rel=1e-4)
    if method == "look-up":
        assert errors.weights is None
        return
    matrix = first.approximation if hasattr(first, "shift") else first
    missing = np.linalg.norm(weights - np.asarray(matrix.materialise()))
    assert errors.weights == pytest.approx(missing / np.linalg.norm(weights), rel=1e-4)
    for kind in (Quantised, Sparse):
        assert isinstance(matrix, kind) == (
            method == {Quantised: "rounded", Sparse: "sparse"}[kind]
        )


def test_one_function_runs_all_matrices(layers):
    functions = set()
    for method in ("data-driven", "rounded", "sparse"):
        sized = layers.at_all_sizes(LADDERS[method])
        made = {path: each.fit.at(each.sizes[0]) for path, each in sized.items()}
        functions.add(layers.network(made)[0])
    assert functions == {layers.network({})[0]}
    loaded = layers.loaded
    (batch,) = loaded.held_out
    function, parameters = layers.network({})
    expected = loaded.function(loaded.parameters, batch)
    np.testing.assert_allclose(function(parameters, batch), expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_of_the_layer_and_its_inputs(found):
    loaded = TINY.load()
    rows = np.concatenate(loaded.calibration).astype(float)
    first = found.statistics[0]
    weights = np.asarray(loaded.parameters.weights[0], float)
    values = np.linalg.svd(weights, compute_uv=False)
    moments = rows.T @ rows
    assert first.layer == ".weights[0]" and first.shape == (10, 10) and first.rows == 60
    assert first.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2 / 10)
    ratio = np.trace(moments) ** 2 / np.sum(moments**2) / 10
    assert first.participation_ratio == pytest.approx(ratio, rel=1e-5)
    share = len(rows) * np.sum(rows.mean(axis=0) ** 2) / np.trace(moments)
    assert first.mean_share == pytest.approx(share, rel=1e-5)


def test_it_goes_on_where_it_was_stopped(found, folder):
    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(files) == 1 + sum(len(FAMILIES[family]) for family in SOME)
    again = compare(TINY, budgets=BUDGETS, families=SOME, seed=0, folder=folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == files
    assert dataclasses.replace(again, machine=found.machine) == found


def test_it_is_written_and_drawn(found, tmp_path):
    report.write(found, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(report.FILES)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["network"] == "tiny" and len(content["layers"]) == len(found.layers)
    asked = "--families 'low rank' 'few bits' 'few entries'"
    assert content["command"] == f"lowrank-theory compare tiny --budget 0.3 0.6 {asked} --seed 0"
    figure = drawn(
        statistics=found.statistics, layers=found.layers, networks=found.networks,
        metric=found.metric, times=found.times,
    )  # fmt: skip
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    said = report.sentences(found)
    assert "30 % of the bits" in said[0] and "rank correlation" in said[-1]


def test_bad_input():
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"budgets": ()}, "`budgets` is empty"),
        ({"budgets": (2.0,)}, "`budgets`"),
        ({"families": ()}, "`families` is empty"),
        ({"families": ("magic",)}, "`families` must be of low rank, few bits, .*; got 'magic'"),
    )
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            compare(TINY, seed=0, **options)
