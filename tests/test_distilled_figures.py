"""What the committed numbers on distillation must show, and that their scripts run."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
SCRIPTS = ("distill_digits", "distill_alexnet", "distill_resnet20")


def numbers(name: str) -> dict[str, Any]:
    file = ROOT / "figures" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there: `python experiments/{name}.py` makes it")
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_committed_numbers_can_be_drawn(name: str, monkeypatch):
    made = numbers(name)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    script = importlib.import_module(name)
    assert made["seed"] == script.SEED and made["quick"] is False
    figure = script.draw(made)
    assert isinstance(figure, Figure)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_factors_learn_from_digits_and_not_from_other_images():
    made = numbers("distill_digits")
    for row in made["factors"]:
        if row["share"] <= 0.25:
            assert row["after"]["digits"]["divergence"]["high"] < row["before"]["divergence"]
        for name, found in row["after"].items():
            assert name in ("digits", "shuffled pixels") or (
                found["accuracy"]["high"] < row["before"]["accuracy"]
            )


def test_what_the_teacher_says_is_worth_all_labels_and_more_than_few():
    said = numbers("distill_digits")["small"]["said"]
    soft, few = said["soft"]["accuracy"], said["few"]["accuracy"]
    assert soft["low"] > few["high"]
    for name in ("decisions", "true"):
        other = said[name]["accuracy"]
        assert soft["low"] < other["high"] and other["low"] < soft["high"]


def test_half_of_what_resnet20_loses_comes_back():
    made = numbers("distill_resnet20")
    row = made["students"]["50% of the parameters"]
    before, after = (row[when]["accuracy"] for when in ("before", "after"))
    assert after - before >= (made["teacher"]["accuracy"] - before) / 2


def test_alexnet_recovers_where_it_has_lost_and_gains_nothing_else():
    made = numbers("distill_alexnet")
    teacher, students = made["teacher"]["accuracy"], made["students"]
    for rate in ("0.001", "0.0001"):
        tenth = students[f"10% of the parameters, rate {rate}"]
        before, after = (tenth[when]["accuracy"] for when in ("before", "after"))
        assert after - before >= (teacher - before) / 2
        quarter = students[f"25% of the parameters, rate {rate}"]
        before, after = (quarter[when] for when in ("before", "after"))
        assert abs(after["accuracy"] - before["accuracy"]) < 0.012  # a standard error
        first, second = quarter["first_losses"][:2]
        assert (second > 10 * first) == (rate == "0.001")
        assert (after["divergence"] < before["divergence"]) == (rate == "0.0001")
    small = students["half as wide, random weights"]
    assert small["share"] == pytest.approx(0.25, abs=0.01)
    assert small["after"]["accuracy"] < before["accuracy"] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tmp_path: Path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, tmp_path / "experiments" / f"{name}.py", "--quick"],
        check=False, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "figures" / f"{name}.json").read_text())["quick"] is True
