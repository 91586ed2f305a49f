"""One name, four places; and what the committed numbers must show."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.models.catalogue import CASES, available
from lowrank_theory.theorems import CONTENTS, PARTS, STATEMENTS

ROOT = Path(__file__).parents[1]
NAMES = [theorem.name for theorem in CONTENTS]
TRANSFERS = [f"transfer_{name}" for name in CASES if name != "digits_cnn"]
FRONTIERS = [f"frontier_{name}" for name in CASES]
COMPARED = [f"compare_{name}" for name in CASES]
NOTES_OF_OTHERS = {
    "README", "notation", "transfer", "methods", "why_data_helps", "a_theorem_of_your_own",
    "after_deployment",
    "constrained",
    "compare", "without_labels",
}  # fmt: skip
FIGURES_OF_OTHERS = {
    *TRANSFERS, *FRONTIERS, *COMPARED, "compare_shapes", "compare_statistics", "compare_sweeps",
    "phase_diagram", "certificate_coverage", "code_certificate", "fine_tune",
    "distill_digits", "distill_resnet20", "distill_alexnet",
    "transfer_calibration",
    "transfer_summary", "why_data_helps", "look_up_networks", "methods_on_networks",
    "every_size", "compressible_subspaces", "subspaces_cifar10",
    "data_free",
}  # fmt: skip
SCRIPTS_OF_OTHERS = {
    *FIGURES_OF_OTHERS, "frontiers",
    "train_digits", "train_digits_cnn", "train_alexnet", "train_ag_news",
}  # fmt: skip


def stems(folder: str, suffix: str) -> set[str]:
    return {file.stem for file in (ROOT / folder).glob(f"*{suffix}") if file.name[0] != "_"}


def numbers(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "figures" / f"{name}.json").read_text())


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch):
    """Import an experiment as running it would: with its folder on the path."""
    monkeypatch.syspath_prepend(ROOT / "experiments")

    def imported(name: str) -> ModuleType:
        file = ROOT / "experiments" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"experiment_{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return imported


@pytest.mark.parametrize(
    ("folder", "suffix", "others"),
    [
        ("lowrank_theory/theorems", ".py", set()),
        ("experiments", ".py", SCRIPTS_OF_OTHERS),
        ("figures", ".svg", FIGURES_OF_OTHERS),
        ("figures", ".json", {*FIGURES_OF_OTHERS, "train_ag_news"}),
        ("paper_notes", ".md", NOTES_OF_OTHERS),
    ],
)
def test_every_theorem_has_its_place(folder: str, suffix: str, others: set[str]):
    assert stems(folder, suffix) - others == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_say_how_they_were_made(name: str, experiment):
    made = numbers(name)
    assert made["seed"] == experiment(name).SEED
    assert made["quick"] is False
    assert {"python", "jax", "numpy"} <= set(made["versions"])


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_numbers_can_be_drawn(name: str, experiment):
    figure = experiment(name).draw(numbers(name))
    assert isinstance(figure, Figure)
    for panel in figure.axes:
        assert panel.get_xlabel()
    assert figure.axes[0].get_ylabel()


def test_the_lists_of_theorems_are_as_they_are_made(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    indices = importlib.import_module("_indices")
    for file in indices.PLACES:
        assert indices.filled(file) == (ROOT / file).read_text(), "`make indices` makes it anew"
    assert [name for names in PARTS.values() for name in names] == NAMES


def test_no_published_constant_is_smaller(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    known = importlib.import_module("_constants").constants()
    assert set(known) <= set(STATEMENTS)
    for constant in known.values():
        assert (constant.published is None) == (constant.source is None)
        assert constant.here <= (constant.published or constant.here)
    assert any(each.published and each.here < 0.7 * each.published for each in known.values())


def test_the_bound_is_tightest_for_few_components_near_the_threshold(experiment):
    made = numbers("phase_diagram")
    assert made["seed"] == experiment("phase_diagram").SEED and made["quick"] is False
    rank, strength = np.unravel_index(np.argmax(made["ratios"]), np.shape(made["ratios"]))
    assert made["ranks"][rank] <= 2
    assert 0.5 <= made["strengths"][strength] <= 1.5
    assert made["largest_ratio"] < 1
    assert isinstance(experiment("phase_diagram").draw(made), Figure)
    assert "(phase_diagram.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_the_limit_is_met_where_the_signal_is_detected():
    large = [r for r in numbers("planted_rank")["results"] if max(r["q"], r["outputs"]) >= 400]
    assert large
    assert numbers("planted_rank")["trials"] >= 50
    assert numbers("planted_rank")["rank"] <= 5
    for result in large:
        assert result["largest_deviation_from_limit"] <= 0.03


def test_the_worst_signal_costs_at_least_the_floor_and_at_most_the_bound():
    for result in numbers("planted_rank")["results"]:
        worst = result["worst_over_strengths"]["error"]
        assert result["floor"] <= worst["low"]
        assert worst["high"] <= result["bound"]


def test_the_condition_number_is_attained():
    assert numbers("price_of_ignoring_data")["largest_gap_to_condition_number"] <= 0.01


def test_the_first_order_excess_is_met_by_many_rows():
    for result in numbers("calibration_size")["results"]:
        last = result["points"][-1]
        half_width = last["excess"]["high"] - last["excess"]["mean"]
        assert result["last_deviation"] <= 0.03 + half_width / last["first_order"]


@pytest.mark.parametrize("name", ["approximate_rank", "relu_noise_after"])
def test_no_trial_exceeds_a_sure_bound(name: str):
    made = numbers(name)
    rows = made["rows"] if "rows" in made else [*made["by_threshold"], *made["by_noise"]]
    allowed = 1 + rounding_allowance(1.0, made["samples"])
    assert all(r["largest_ratio"] <= allowed for r in rows if r.get("threshold", 1) >= 1)


def test_tables_are_ahead_of_low_rank_in_operations_and_not_in_bytes():
    made = numbers("look_up")
    for rows in ("low_rank", "full_rank"):
        factors = made[rows]["factors"]
        for table in made[rows]["tables"]:
            error, codebooks = table["ours"]["mean"], table["codebooks"]
            assert table["floor"]["mean"] <= error
            if 2 <= codebooks <= 32:
                cheaper = [f for f in factors if f["operations"] <= table["operations"]]
                assert all(f["error"]["mean"] > error for f in cheaper)
            smaller = [f for f in factors if f["bytes_rounded"] <= table["bytes"]]
            assert any(f["rounded"]["mean"] < error for f in smaller)
            if rows == "low_rank" and codebooks >= 8:
                assert table["ours"]["mean"] < table["published"]["mean"]
                smaller = [f for f in factors if f["bytes"] <= table["bytes"]]
                assert min(f["error"]["mean"] for f in smaller) < error or codebooks == 8


def test_networks_of_tables_lose_what_was_published(experiment):
    made = numbers("look_up_networks")
    assert made["seed"] == experiment("look_up_networks").SEED and made["quick"] is False
    assert isinstance(experiment("look_up_networks").draw(made), Figure)
    layers = [f"layer_{k}" for k in range(4)]
    for name in ("digits", "mnist"):
        for rows in (made[name][method] for method in ("published", "weighted", "ours")):
            means = {what: [row[what]["mean"] for row in rows] for what in (*layers, "all")}
            assert all(each == sorted(each) for each in means.values())
            alone = np.min([means[what] for what in layers], axis=0)
            assert np.all(means["all"] <= alone)
            assert np.all(np.array(means["layer_3"]) > np.array(means["layer_0"]) - 1e-12)
    found = [row["trained_between"]["mean"] for row in made["mnist"]["published"]]
    np.testing.assert_allclose(found, made["published"]["all"], atol=0.1)  # of another training
    assert made["mnist"]["exact"]["low"] > 0.965 and max(found) < 0.87
    assert "(look_up_networks.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_the_trends_of_tables_are_as_expected(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    expected = importlib.import_module("_look_up_trends").EXPECTED
    made = {
        trend: {name: np.array(values) for name, values in found.items()}
        for trend, found in numbers("look_up")["trends"].items()
    }
    for trend, (codebooks, given) in expected.items():
        for name, values in given.items():
            found = made[trend][name][-len(codebooks) :]
            np.testing.assert_allclose(
                found, values, rtol=0.3, atol=0.03, err_msg=f"{trend} {name}"
            )
    for rows in ("rank 4", "rank 16", "full rank"):
        found = made[rows]
        fitted, means = found["tree, fitted"], found["nearest centres, bucket means"]
        assert np.all(np.diff(fitted) < 0)
        assert np.all(found["tree, bucket means"] > means)
        assert np.all(found["tree, fitted, bytes"] < 1.03 * fitted)
        assert np.all(found["the same, rows that were seen"][1:] < fitted[1:])
        assert np.all(np.diff(found["averaged, biased"] - found["averaged"])[2:] > 0)
        gains = (means / fitted)[4:]
        assert np.all(gains < 1.3) if rows == "full rank" else np.all(gains > 2)
    assert np.all(made["rank 16"]["nearest centres, fitted"] < made["rank 16"]["tree, fitted"])
    for kind in ("ten outputs", "few inputs count", "one output", "rectified rows"):
        gains = made[kind]["tree"] / made[kind]["tree that knows the weights"]
        assert np.all(gains > 1 / 1.03)
        assert np.all(gains > 1.2) == (kind in ("few inputs count", "one output"))
    relu = made["ReLU"]
    assert np.all(relu["through the ReLU, seen"] < relu["linear, seen"])
    assert np.all(relu["through the ReLU, before it"] > relu["linear, before it"])
    assert np.all(relu["through the ReLU, to come"][:3] < relu["linear, to come"][:3])
    assert np.all(made["softmax"]["relative entropy"] > made["softmax"]["squares"] - 0.01)


NOTES = [
    "_look_up_note", "_distill_note", "methods_on_networks", "every_size", "data_free",
    "compressible_subspaces", "subspaces_cifar10",
]  # fmt: skip


@pytest.mark.parametrize("script", NOTES)
def test_the_tables_of_a_note_are_those_of_the_numbers(script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    note = importlib.import_module(script)
    text = note.NOTE.read_text()
    assert all(f"<!-- table: {name} -->" in text for name in note.TABLES)
    tables = importlib.import_module("_transfer_note")
    assert tables.filled(text, ROOT / "figures", note.TABLES) == text


def test_rounding_is_either_small_or_announced():
    for row in numbers("best_possible")["rounding"]:
        for route in ("rows", "gram"):
            assert row[route]["excess"] <= 1e-3 or not row[route]["certified"]
    assert not all(row["gram"]["certified"] for row in numbers("best_possible")["rounding"])


def test_an_experiment_runs(tmp_path: Path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    script = tmp_path / "experiments" / "price_of_ignoring_data.py"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, script, "--quick"], check=True, env=environment, timeout=300)
    written = tmp_path / "out" / "figures" / "price_of_ignoring_data"
    measured = json.loads(written.with_suffix(".json").read_text())
    assert measured["quick"] is True
    assert measured["largest_gap_to_condition_number"] <= 0.01
    assert "<dc:date>" not in written.with_suffix(".svg").read_text()


# --- trained networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_committed_study_can_be_drawn(name: str, experiment):
    file = ROOT / "figures" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there: `python experiments/{name}.py` makes it")
    made = numbers(name)
    assert file.stat().st_size < 250_000
    assert made["seed"] == experiment(name).SEED and made["quick"] is False
    assert made["network"] == name.removeprefix("transfer_")
    assert made["budgets"] == [0.25, 0.5, 0.75]
    figure = experiment(name).draw(made)
    assert isinstance(figure, Figure)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


@pytest.mark.parametrize("name", FRONTIERS)
def test_no_kind_alone_is_surely_better_than_what_is_returned(name: str, experiment):
    if not (ROOT / "figures" / f"{name}.json").is_file():
        pytest.skip(f"`python experiments/frontiers.py {name.removeprefix('frontier_')}` makes it")
    made, frontiers = numbers(name), experiment("frontiers")
    assert made["seed"] == frontiers.SEED and made["quick"] is False
    assert {row["budget"] for row in made["comparisons"]} == {1 / 8, 1 / 4}
    assert all(row["low"] <= 0 for row in made["comparisons"] if row["first"] == "returned")
    for point in made["points"]:
        assert point["lower_bound"] <= point["planned"]
    figure = frontiers.draw(made)
    assert all(panel.get_ylabel() for panel in figure.axes) and figure.axes[-1].get_xlabel()
    assert (ROOT / "figures" / f"{name}.svg").stat().st_size < 250_000
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_the_table_of_frontiers_is_that_of_the_numbers(experiment):
    frontiers = experiment("frontiers")
    text = frontiers.NOTE.read_text()
    assert "<!-- table: frontiers -->" in text
    assert frontiers.filled(text, ROOT / "figures") == text


@pytest.mark.parametrize("name", COMPARED)
def test_a_committed_comparison_can_be_drawn(name: str, experiment):
    file = ROOT / "figures" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there: `python experiments/{name}.py` makes it")
    made = numbers(name)
    assert file.stat().st_size < 40_000 + 11_000 * len(made["statistics"])  # layers
    assert file.with_suffix(".svg").stat().st_size < 250_000
    assert made["seed"] == experiment(name).SEED and made["quick"] is False
    assert made["network"] == name.removeprefix("compare_")
    figure = experiment(name).draw(made)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer_digits", "transfer_mnist"])
def test_a_study_runs(name: str, tmp_path: Path):
    missing = available(name.removeprefix("transfer_"))
    if missing is not None:
        pytest.skip(missing.splitlines()[0])
    assert run_quickly(name, tmp_path).returncode == 0
    written = tmp_path / "out" / "figures" / name
    measured = json.loads(written.with_suffix(".json").read_text())
    assert measured["quick"] is True and measured["budgets"] == [0.5]
    assert {row["method"] for row in measured["networks"]} >= {"data-driven", "data-agnostic"}
    assert written.with_suffix(".svg").is_file()


def test_a_study_without_its_data_says_what_to_get(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    done = run_quickly("transfer_mnist", tmp_path)
    assert done.returncode == 77
    assert "mnist cannot be studied: LOWRANK_DATA is not set" in done.stderr
    assert "Traceback" not in done.stderr


def run_quickly(name: str, folder: Path) -> subprocess.CompletedProcess:
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, folder / "experiments" / f"{name}.py", "--quick"],
        check=False, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_certificates_fail_no_more_often_than_promised():
    made = numbers("certificate_coverage")
    assert made["quick"] is False
    assert made["draws"] >= 1000
    for promised, found in zip(made["failure_probabilities"], made["most_failures"], strict=True):
        assert found["low"] <= promised
    real = [result for result in made["results"] if result["network"]]
    assert not any(any(r["by_units"]["vacuous"]) for r in real if r["share"] == 0.5)


def test_certificates_by_a_code_hold_for_other_units(experiment):
    made = numbers("code_certificate")
    assert made["seed"] == experiment("code_certificate").SEED and made["quick"] is False
    assert isinstance(experiment("code_certificate").draw(made), Figure)
    for row in made["rows"]:
        assert max(row["mean"], row["others"]) <= min(row["code"], row["betting"], row["half"])
        assert row["code"] <= row["hoeffding"]
    assert "(code_certificate.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_factors_fitted_to_data_start_and_end_ahead_at_a_tenth(experiment):
    made = numbers("fine_tune")
    assert made["seed"] == experiment("fine_tune").SEED
    assert made["quick"] is False
    driven, agnostic = (row for row in made["rows"] if row["share"] == 0.1)
    assert driven["compressed"]["accuracy"] > agnostic["compressed"]["accuracy"]
    ends = [row["fine_tuned"]["accuracy"] for row in (driven, agnostic)]
    assert ends[0]["low"] > ends[1]["high"]
    assert isinstance(experiment("fine_tune").draw(made), Figure)
