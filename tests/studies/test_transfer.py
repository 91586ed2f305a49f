"""The study of one network: what it records, that its numbers are right, and that it goes on."""

import dataclasses
import json
import math
import re
import sys
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.networks import Perceptron, Transfer, transfer
from lowrank_theory.reports import transfer as transfer_report
from lowrank_theory.studies import _scrutiny, _sizes
from lowrank_theory.studies.pieces import Pieces, digest
from lowrank_theory.studies.transfer_rows import NetworkAtSize
from lowrank_theory.studies.ways import ROUNDED, SAME_RANKS, STANDARD
from pages import Resources
from studied import SIZES, TINY, load, normal

module = sys.modules[transfer.__module__]  # its name in the package is the function's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("points")


@pytest.fixture(scope="module")
def found(folder) -> Transfer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scrutiny, "SECONDS", 0.02)
        return transfer(TINY, budgets=(0.6,), ways=("rounded", "n of m"), seed=0, folder=folder)


def rows_of(found: Transfer, budget: float) -> dict[str, NetworkAtSize]:
    return {row.method: row for row in found.networks if row.budget == budget}


# --- what it records ------------------------------------------------------------------------------


def test_every_method_at_every_size(found):
    for budget in found.budgets:
        rows = rows_of(found, budget)
        assert set(rows) == {way.name for way in (*STANDARD, SAME_RANKS, ROUNDED)}
        for name, row in rows.items():
            assert 0 < row.bytes <= budget * row.dense_bytes
            assert (row.dense_parameters, row.dense_bytes) == (300, 1200)
            if name != ROUNDED.name:
                assert row.bytes == 4 * row.parameters
            assert row.multiply_adds <= row.dense_multiply_adds
            assert 0 <= row.output_loss <= row.certificate <= 1
            assert row.low <= row.difference <= row.high
            assert row.metric == pytest.approx(found.metric.value + row.difference)
        assert rows["data-driven"].parameters == rows["sequential"].parameters
    assert found.metric.value == 1 and found.metric.scored == SIZES.items


def test_the_last_layer_is_best_fitted_in_sequence(found):
    """On the data that it was fitted to, at the same ranks: what theory says of the last layer."""
    rows = rows_of(found, 0.6)
    assert found.half.certificates[-1].rank is not None
    sequential, driven = rows["sequential"], rows["data-driven"]
    assert sequential.error_calibration < driven.error_calibration


def test_each_layer_is_certified_or_dense(found):
    rows = found.half.certificates
    assert [row.layer for row in rows] == [f".weights[{k}]" for k in range(3)]
    assert any(row.rank for row in rows)
    for row in rows:
        if row.rank is None:
            assert row.loss is row.certificate is None and row.remark
        else:
            assert 0 < row.loss < row.certificate <= 1


def test_times_are_of_both_networks(found):
    assert [row.batch for row in found.half.times] == [1, SIZES.units]
    for row in found.half.times:
        assert row.dense > 0 and row.factored > 0 and row.repetitions >= 5


def test_it_is_ready_for_json(found):
    content = found.everything()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["layers"]["rows"] and content["seconds"] > 0
    assert {row.layer for row in found.layers.rows} == {
        row.layer for row in found.half.certificates
    }


# --- that its numbers are right -------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed():
    loaded = load(SIZES)
    return loaded, _sizes.compress(
        loaded.function, loaded.parameters, loaded.calibration, _sizes.Bytes(0.6)
    )


def test_truncated_weights_have_the_ranks_of_the_fitted(compressed):
    loaded, driven = compressed
    truncated = _sizes.factors_of(_sizes._truncated_like(driven, loaded))
    fitted = _sizes.factors_of(driven)
    assert truncated.keys() == fitted.keys() and fitted
    for path, factors in truncated.items():
        weights = np.asarray(loaded.parameters.weights[int(path[-2])], float)
        u, s, vt = np.linalg.svd(weights)
        rank = _sizes.low_rank(fitted[path]).rank
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
        low_rank = _sizes.low_rank(factors)
        assert low_rank.rank == rank
        np.testing.assert_allclose(low_rank.materialise(), expected, atol=1e-5)
        assert not np.any(getattr(factors, "shift", 0))


def forward(network: Perceptron, replaced: dict, images: np.ndarray) -> np.ndarray:
    """The network with some layers replaced by (matrix, shift), in float64."""
    x = images.astype(float)
    for k, (weights, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        matrix, shift = replaced.get(k, (np.asarray(weights, float), 0))
        x = x @ matrix + shift + np.asarray(bias, float)
        x = np.maximum(x, 0) if k < len(network.weights) - 1 else x
    return x


def test_errors_compose_as_by_hand(compressed):
    loaded, driven = compressed
    composed: Any = _scrutiny._composition(loaded, driven)
    network, images = loaded.parameters, loaded.held_out[0]
    replaced = {
        int(path[-2]): (
            np.asarray(_sizes.low_rank(factors).materialise(), float),
            np.asarray(getattr(factors, "shift", 0.0), float),
        )
        for path, factors in _sizes.factors_of(driven).items()
    }
    dense = forward(network, {}, images)
    norm = np.linalg.norm(dense)
    alone = [
        np.linalg.norm(dense - forward(network, {k: each}, images)) / norm
        for k, each in replaced.items()
    ]
    measured = np.linalg.norm(dense - forward(network, replaced, images)) / norm
    np.testing.assert_allclose(composed.alone, alone, rtol=1e-3)
    assert composed.measured == pytest.approx(measured, rel=1e-3)
    assert composed.sum == pytest.approx(sum(composed.alone))
    assert composed.measured <= composed.telescoping * (1 + 1e-5)
    assert composed.telescoping <= composed.telescoping_bound * (1 + 1e-5)
    assert composed.measured <= composed.residuals_bound * (1 + 1e-5)
    scores = loaded.metric.scores(loaded.function, loaded.parameters)
    found = _sizes.compared(
        loaded, driven, scores, 0, budget=0.6, method="data-driven", seconds=None
    )
    assert found.error_held_out == pytest.approx(measured, rel=1e-3)
    units = np.concatenate(loaded.units)
    dense, other = forward(network, {}, units), forward(network, replaced, units)
    losses = np.sum((dense - other) ** 2, 1) / np.sum(dense**2, 1)
    assert found.output_loss == pytest.approx(np.minimum(losses, 1).mean(), rel=1e-3)


def test_stacks_keep_their_shape():
    for shape in ((3, 6, 4), (3, 4, 6), (5, 2)):
        matrix = normal(0, *shape)
        factors = _scrutiny._as_factors(matrix, None)
        found = _sizes.low_rank(factors)
        assert found.rank == min(shape[-2:])
        np.testing.assert_array_equal(np.asarray(found.left) @ np.asarray(found.right), matrix)
        assert factors.shift.shape == (*shape[:-2], shape[-1]) and not np.any(factors.shift)


def test_differences_are_paired(compressed):
    loaded, _ = compressed
    right = np.arange(200) % 10 > 0
    value = loaded.metric.value
    assert _sizes.paired_interval(value, right, right, 0) == (0, 0)
    worse = right & (np.arange(200) > 20)
    low, high = _sizes.paired_interval(value, right, worse, 0)
    assert low < worse.mean() - right.mean() < high < 0
    assert (low, high) == _sizes.paired_interval(value, right, worse, 0)


def test_units_of_one_shape_are_joined():
    units = [np.zeros((1, 3))] * 2 + [np.ones((1, 2))] * 3
    assert _scrutiny._joined(units, 2).shape == (2, 2)
    assert _scrutiny._joined(units, 32).shape == (3, 2)


# --- that it goes on ------------------------------------------------------------------------------


def test_what_is_finished_is_kept(found, folder, monkeypatch):
    files = sorted(folder.iterdir())
    assert len(files) == 4

    def again(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "by_each_way", again)
        patch.setattr(module.layer_study, "study", again)
        steps = []
        same = transfer(
            TINY, budgets=(0.6, 0.6), ways=("rounded", "n of m"), seed=0, folder=folder,
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
        assert same.everything() == found.everything()
        assert [(done, total) for _, done, total in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        with pytest.raises(AssertionError, match="computed again"):
            transfer(TINY, budgets=(0.6,), seed=1, folder=folder)
    assert sorted(folder.iterdir()) == files


def test_a_torn_piece_is_made_anew(tmp_path):
    pieces = Pieces(tmp_path, ["x"])
    assert pieces.get("a", lambda: {"b": [1.5, math.inf]})["found"] == {"b": [1.5, None]}
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is corrupt.*computed anew"):
        assert Pieces(tmp_path, ["x"]).get("a", lambda: 2)["found"] == 2
    other = Pieces(tmp_path, ["y"])
    assert other.get("a", lambda: 3)["found"] == 3
    other.prune()
    assert len(list(tmp_path.iterdir())) == 1


def test_another_network_of_the_same_name_is_another():
    loaded = load(SIZES)
    known = digest(loaded)
    assert digest(load(SIZES)) == known
    for part in ("calibration", "held_out", "units"):
        first, *others = getattr(loaded, part)
        changed = first.copy()
        changed[-1, -1] += 1e-3
        other = dataclasses.replace(loaded, **{part: [changed, *others]})
        assert digest(other) != known
    trained = jax.tree.map(lambda leaf: leaf / 3, loaded.parameters)
    assert digest(dataclasses.replace(loaded, parameters=trained)) != known


def test_the_command_names_each_budget_to_the_last_digit(found):
    two = dataclasses.replace(found, budgets=(1 / 3, 0.333333))
    assert f"--budget {1 / 3} 0.333333 --ways" in transfer_report.command(two)


@pytest.mark.parametrize("budgets", [(), (0.0,), (0.5, 1.0), (-0.5,), (float("nan"),)])
def test_budgets_that_are_no_shares(budgets):
    with pytest.raises(ValueError, match="`budgets`"):
        transfer(TINY, budgets=budgets, seed=0)


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_needs_nothing_but_itself(found, tmp_path):
    transfer_report.write(found, tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "report.json", "network.svg", "layer_errors.svg"} < written
    page = (tmp_path / "report.html").read_text()
    resources = Resources()
    resources.feed(page)
    assert len(resources.fetched) == len(written) - 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in resources.fetched)
    assert not resources.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(|\bNone\b|\bnan\b|built-in", page)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["networks"] == found.everything()["networks"]
    assert content["command"] == (
        "lowrank-theory transfer tiny --budget 0.6 --ways rounded 'n of m' --seed 0"
    )
    assert "by rounding its entries to few bits" in page


def test_it_is_said_in_words(found):
    said = transfer_report.sentences(found)
    assert "the accuracy is" in said[0]
    assert "With probability 95 %" in " ".join(said)
    assert "in the place of the weights it is rounded" in " ".join(said)


def test_a_budget_that_a_way_cannot_meet_is_said(found):
    """Ten inputs are no multiple of four, so that all layers stay dense."""
    (row,) = found.unmet
    assert (row.budget, row.method) == (0.6, "n of m") and "cannot be met" in row.why
    assert "has no size for this shape" in row.why
    with pytest.raises(ValueError, match=r"`ways` must be of rounded, .*; got 'thin'"):
        transfer(TINY, ways=["thin"], seed=0)
