"""The command that studies a trained network, of the catalogue or in a file of the user's own."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import refused, strict
from lowrank_theory import cli
from lowrank_theory.studies import _scrutiny
from lowrank_theory.studies.transfer_rows import DenseMetric
from made_rows import network_at_size

ROOT = Path(__file__).parents[2]


@pytest.fixture
def studied(monkeypatch):
    """What `transfer` is asked, instead of a long study, and a small one that it answers with."""
    asked = {}

    def transfer(case, **options):
        asked.update(options, case=case.name)
        options["progress"]("digits: layers", 1, 2)
        return found

    def write(written, folder):
        assert written is found
        (folder / "report.json").write_text("{}")

    metric = DenseMetric(name="accuracy", larger_is_better=True, value=0.9625, scored=80)
    found = SimpleNamespace(networks=(network_at_size(bytes=49),), metric=metric)
    content = {"metric": metric.row()}
    monkeypatch.setattr(cli.transfer, "transfer", transfer)
    monkeypatch.setattr(cli.transfer.report_page, "write", write)
    monkeypatch.setattr(cli.transfer.report_page, "record", lambda found: content)
    monkeypatch.setattr(
        cli.transfer.report_page, "sentences", lambda found: ["It is half as large."]
    )
    return asked


def test_a_network_is_studied(studied, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, file = tmp_path / "report", tmp_path / "x.json"
    arguments = ["transfer", "digits", "--budget", "0.3", "0.5", "--seed", "7"]
    assert cli.main([*arguments, "--out", str(out), "--json", str(file)]) == 0
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "digits: layers: 1 of 2 after 0 s" in printed
    assert "data-driven" in printed and "49 %" in printed and "-0.02 to 0" in printed
    assert "It is half as large." in printed and f"Report: {out / 'report.html'}" in printed
    assert studied["case"] == "digits" and studied["seed"] == 7
    assert studied["budgets"] == [0.3, 0.5] and studied["folder"] == out / "points"
    assert strict(file)["metric"]["name"] == "accuracy"
    assert cli.main([*arguments, "--out", str(out)]) == 0, "an earlier report is overwritten"


def test_networks_are_listed_with_what_is_missing(capsys, monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    assert cli.main(["transfer", "--list"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "there" in rows["digits"] and "missing" in rows["resnet20"]
    assert "resnet20: LOWRANK_DATA is not set." in printed
    assert all(name in rows for name in cli.transfer.catalogue.CASES)
    assert "resnet_cifar10/resnet20.npz" in printed and "huggingface.co" in printed


@pytest.mark.usefixtures("studied")
class TestBadTransfer:
    def test_unknown_network(self, capsys):
        line = refused(capsys, "transfer", "nonsense")
        assert "there is no network 'nonsense'; there are digits, digits_cnn, mnist" in line

    def test_missing_data(self, capsys, monkeypatch, tmp_path):
        monkeypatch.delenv("LOWRANK_DATA", raising=False)
        line = refused(capsys, "transfer", "resnet20", "--out", tmp_path / "x")
        assert "argument NETWORK: resnet20 cannot be read: LOWRANK_DATA is not set;" in line
        assert "transfer --list" in line and not (tmp_path / "x").exists()

    @pytest.mark.parametrize("budget", ["0", "1", "-0.5", "half", "nan"])
    def test_budget(self, capsys, budget):
        line = refused(capsys, "transfer", "digits", f"--budget={budget}")
        assert f"must be a share strictly between 0 and 1; got {budget!r}" in line

    def test_arguments(self, capsys, tmp_path):
        assert "one of the arguments NETWORK --list is required" in refused(capsys, "transfer")
        assert "not allowed with" in refused(capsys, "transfer", "digits", "--list")
        (tmp_path / "thesis.tex").touch()
        assert "holds no report.json" in refused(capsys, "transfer", "digits", "--out", tmp_path)


# --- a network of the user's own ------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path) -> Path:
    """The file that the README shows."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (block,) = (block for block in blocks if "case = Case(" in block)
    file = tmp_path / "mine.py"
    file.write_text(block)
    return file


def test_a_network_in_a_file_is_studied(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(_scrutiny, "SECONDS", 0.02)
    out = tmp_path / "out"
    assert cli.main(["transfer", f"{mine}:case", "--budget", "0.5", "--out", str(out)]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["network"] == "mine" and found["source"] == f"{mine}:case"
    assert found["command"] == f"lowrank-theory transfer {mine}:case --budget 0.5 --seed 0"
    assert 0 < found["networks"][0]["bytes"] <= 0.5 * found["networks"][0]["dense_bytes"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "case", "there is no file"),
        ("case = 3", "case", "holds no `Case` 'case': it holds none"),
        ("import nowhere_at_all", "case", "cannot be run: ModuleNotFoundError"),
    ],
)
def test_a_file_without_a_case_is_refused(content, name, message, tmp_path, capsys):
    file = tmp_path / "wrong.py"
    if content is not None:
        file.write_text(content)
    assert cli.main(["transfer", f"{file}:{name}"]) == cli.BAD_USAGE
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_cases_of_a_file_are_named(mine, capsys):
    assert cli.main(["transfer", f"{mine}:other"]) == cli.BAD_USAGE
    assert "holds no `Case` 'other': it holds case" in capsys.readouterr().err
