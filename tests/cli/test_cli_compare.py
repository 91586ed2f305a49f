"""The command that compares methods on a trained network."""

import sys

import pytest

from commands import refused, strict
from lowrank_theory import cli
from lowrank_theory.models import catalogue
from lowrank_theory.networks import compare
from studied import TINY


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(catalogue.CASES, "tiny", TINY)
    monkeypatch.setattr(sys.modules[compare.__module__], "SECONDS", 0.02)


@pytest.mark.usefixtures("tiny")
def test_methods_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out, file = tmp_path / "report", tmp_path / "x.json"
    arguments = ["compare", "tiny", "--budget", "0.6", "--families", "few bits", "--seed", "7"]
    assert cli.main([*arguments, "--out", str(out), "--json", str(file)]) == 0
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "tiny: rounded: 2 of 3 after" in printed
    assert "gptq" in printed and "With 60 % of the bits" in printed
    assert f"Report: {out / 'report.json'}" in printed
    assert {each.name for each in out.iterdir()} == {"points", "report.json", "compare.svg"}
    found = strict(file)
    assert found["seed"] == 7 and {row["method"] for row in found["networks"]} == {
        "rounded",
        "gptq",
    }
    assert cli.main([*arguments, "--out", str(out)]) == 0, "an earlier report is overwritten"


def test_bad_usage(capsys, monkeypatch, tmp_path):
    assert "there is no network 'nonsense'" in refused(capsys, "compare", "nonsense")
    assert "invalid choice: 'magic'" in refused(capsys, "compare", "digits", "--families", "magic")
    assert "strictly between 0 and 1" in refused(capsys, "compare", "digits", "--budget", "2")
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    line = refused(capsys, "compare", "resnet20", "--out", tmp_path / "x")
    assert "argument NETWORK: resnet20 cannot be read: LOWRANK_DATA is not set;" in line
