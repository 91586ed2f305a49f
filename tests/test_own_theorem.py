"""The theorems of `paper_notes/a_theorem_of_your_own.md` are sampled, attacked and fitted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_theory import cli
from lowrank_theory._user_files import run_file

NOTE = Path(__file__).parents[1] / "paper_notes" / "a_theorem_of_your_own.md"
SURE, LIKELY, FROM_PYTHON = re.findall(  # the last needs the file that the first is
    r"^```py(?:thon)?\n(.*?)^```$", NOTE.read_text(), re.MULTILINE | re.DOTALL
)


def file_of(text: str, folder: Path, name: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


def test_templates_are_short():
    assert all(len(text.splitlines()) <= 60 for text in (SURE, LIKELY))


@pytest.mark.slow
def test_workers_in_an_empty_folder_find_it(tmp_path):
    file_of(SURE, tmp_path, "mine")
    command = [Path(sys.executable).with_name("lowrank-theory"), "verify", "--theorem", "mine.py"]
    subprocess.run([*command, "--workers", "2"], cwd=tmp_path, check=True, timeout=200)
    assert (tmp_path / "out" / "verify" / "report.html").is_file()


def test_a_sure_one_is_verified_and_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(cli.verify.PRESETS, "quick", cli.verify.Preset(100, 10))
    file = file_of(SURE, tmp_path, "mine")
    assert cli.main(["verify", "--theorem", str(file), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"lowrank-theory verify --preset quick --seed 0 --theorem {file}" in page
    assert "How large the outputs of a layer can be" in page
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["theorems"]
    assert row["name"] == "mine.norm" and row["verdict"] == "consistent"


@pytest.mark.slow
def test_the_installed_wheel_is_enough(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    root, site, empty = NOTE.parents[1], tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, root], check=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, timeout=200)
    empty.mkdir()
    file_of(SURE, empty, "mine")
    run = "import lowrank_theory, lowrank_theory.cli as c, sys; print(lowrank_theory.__file__); "
    command = [sys.executable, "-c", run + "sys.exit(c.main())", "verify", "--theorem", "mine.py"]
    found = subprocess.run(
        command,
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.stdout.startswith(str(site))
    assert (empty / "out" / "verify" / "report.html").is_file()


@pytest.mark.slow
def test_a_page_is_written_from_python(tmp_path):
    file_of(SURE, tmp_path, "mine")
    fewer = FROM_PYTHON.replace("trials=1_000", "trials=40")
    assert fewer != FROM_PYTHON
    (tmp_path / "out").mkdir()
    file = file_of(fewer, tmp_path, "whole")
    subprocess.run([sys.executable, file], cwd=tmp_path, check=True, timeout=200)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<code>mine.norm</code>: consistent" in page
    assert "lowrank-theory verify" not in page and "None" not in page


@pytest.mark.slow
def test_it_is_attacked(tmp_path, capsys):
    file = file_of(SURE, tmp_path, "mine")
    assert cli.main(["attack", "--theorem", str(file)]) == 0
    assert "mine.norm: ratio 1.0000" in capsys.readouterr().out


@pytest.mark.slow
def test_one_with_a_probability_is_verified_and_a_false_one_refuted(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    file = file_of(LIKELY, tmp_path, "noise")
    assert cli.main(["verify", "--theorem", f"{file}:noise", *out]) == 0
    false = LIKELY.replace(" + deviation)", " + 0 * deviation)")
    assert false != LIKELY
    file_of(false, tmp_path, "noise")
    assert cli.main(["verify", "--theorem", f"{file}:noise", *out]) == 1
    assert "refuted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_constant_that_is_too_small_is_found_by_the_attack(tmp_path, capsys):
    wrong = SURE.replace("return norm *", "return 0.9 * norm *")
    assert wrong != SURE
    file = file_of(wrong, tmp_path, "mine")
    assert cli.main(["verify", "--theorem", str(file), "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["attack", "--theorem", str(file)]) == 1
    assert "mine.norm: ratio 1.1" in capsys.readouterr().out


@pytest.mark.slow
def test_rates_are_fitted(tmp_path, capsys):
    assert cli.main(["scale", "--theorem", str(file_of(LIKELY, tmp_path, "noise"))]) == 0
    assert "noise.norm" in capsys.readouterr().out


FAULTS = {
    "one number": (SURE, "jnp.linalg.norm(estimate)", "estimate"),
    "`Norm.formula` asks for the value": (SURE, "return norm *", "return float(norm) *"),
    "control": (SURE, "    control = regimes", "    # control = regimes"),
    "states norm.norm twice": (LIKELY, "noise = LargestNoise()", "a = LargestNoise()\nb = a"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_is_named_with_the_method(said, tmp_path, capsys):
    text, old, new = FAULTS[said]
    assert old in text
    name = "norm" if "twice" in said else "mine"
    file = file_of(text.replace(old, new), tmp_path, name)
    assert cli.main(["verify", "--theorem", str(file), "--out", str(tmp_path / "out")]) != 0
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("attack", LIKELY, "none of these can be attacked"),
        ("scale", SURE, "none of these states a rate"),
        ("verify", "x = 3", "holds no theorem: it holds none"),
        ("verify", "import nowhere_at_all", "cannot be run: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_done_is_refused(command, text, said, tmp_path, capsys):
    file = file_of(text, tmp_path, "mine")
    assert cli.main([command, "--theorem", str(file)]) == cli.BAD_USAGE
    assert said in capsys.readouterr().err


def test_a_file_that_failed_can_be_mended(tmp_path):
    file = file_of("import nowhere_at_all", tmp_path, "mended")
    with pytest.raises(ValueError, match="cannot be run"):
        run_file(file)
    assert "mended" not in sys.modules
    file_of("x = 3", tmp_path, "mended")
    assert run_file(file).x == 3


def test_the_name_of_another_module_is_refused(tmp_path, capsys):
    file = file_of(SURE, tmp_path, "json")
    assert cli.main(["verify", "--theorem", str(file)]) == cli.BAD_USAGE
    assert "rename it" in capsys.readouterr().err
