"""The command writes whole files, says what it found in its exit code, and refuses in one line."""

import dataclasses
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from commands import refused, strict
from lowrank_theory import cli
from lowrank_theory.cli import _options
from lowrank_theory.models import catalogue
from lowrank_theory.networks import Dataset, Perceptron, Sizes
from lowrank_theory.reports import verification as report
from lowrank_theory.theorems import CONTENTS, Direction
from lowrank_theory.verification import Control, RegimeReport, Sample, StatementReport, Verdict
from pages import Resources

ROOT = Path(__file__).parents[2]
STATEMENT = "best_possible.truncated_svd"
ROW_KEYS = {
    "name", "kind", "trials", "applicable", "violations", "allowed", "verdict",
    "critical_constant", "refuted_below", "refuted_by", "ratio_median", "ratio_max",
}  # fmt: skip


def a_statement(name: str, verdict: Verdict = Verdict.CONSISTENT) -> StatementReport:
    realised = np.array([0.5, 1.0, 2.0])
    sample = Sample(Direction.UPPER, 4, realised, np.full(3, 4.0), np.zeros(3))
    regime = RegimeReport("square", sample, verdict, 0.5)
    return StatementReport(
        name, "sure upper bound", 0.0, (regime,), (Control("bound times 0.1", True),)
    )


@pytest.fixture
def verdicts(monkeypatch):
    """What the sweep finds, by statement, instead of a long search; consistent where not set."""
    found: dict[str, Verdict] = {}

    def sweep(plans, **_):
        names = [plan.name for plan in plans]
        return [a_statement(name, found.get(name, Verdict.CONSISTENT)) for name in names]

    monkeypatch.setattr(cli.verify, "sweep", sweep)
    return found


@pytest.fixture
def tiny_network(monkeypatch):
    random = np.random.default_rng(0)
    network = Perceptron(
        [random.normal(size=shape).astype(np.float32) for shape in ((6, 5), (5, 3))],
        [random.normal(size=outputs).astype(np.float32) for outputs in (5, 3)],
    )
    images = jnp.asarray(random.normal(size=(60, 6)), jnp.float32)
    labels = jnp.asarray(random.integers(3, size=60), jnp.int32)
    data = Dataset(images[:40], labels[:40], images[40:], labels[40:])
    tiny = catalogue._perceptron(lambda: network, lambda: data)
    case = dataclasses.replace(catalogue.CASES["digits"], read=tiny)
    monkeypatch.setitem(catalogue.CASES, "digits", case)
    monkeypatch.setattr(cli.verify, "SIZES", Sizes(40, 20, units=2, items=2, batch=10))
    monkeypatch.delenv("LOWRANK_DATA", raising=False)


# --- what it finds --------------------------------------------------------------------------------


def test_a_run_of_one_statement(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli.verify.PRESETS, "quick", cli.verify.Preset(10, 1))
    name = "rate_distortion.allocation"  # whose regimes are of one shape
    out, file = tmp_path / "a" / "report", tmp_path / "b" / "rows.json"
    arguments = ["verify", "--only", name, "--out", str(out), "--json", str(file)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "consistent" in printed.out and "2 of 2" in printed.out and not printed.err
    rows = strict(file)
    assert rows.keys() == {"theorems", "layers"} and rows["layers"] == []
    (row,) = rows["theorems"]
    assert row.keys() == ROW_KEYS
    assert row["name"] == name and row["applicable"] == row["trials"] > 0
    everything = strict(out / "report.json")
    assert everything["theorems"] == rows["theorems"]
    assert everything["seed"] == 0 and everything["versions"].keys() >= {"python", "jax", "numpy"}
    written = {path.name for path in out.iterdir()}
    assert written == {"report.html", "report.json", "tightness.svg", "points"}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([Verdict.CONSISTENT, Verdict.CONSISTENT], 0),
        ([Verdict.REFUTED, Verdict.CONSISTENT], 1),
        ([Verdict.CONSISTENT, Verdict.INCONCLUSIVE], 3),
        ([Verdict.INCONCLUSIVE, Verdict.REFUTED], 1),
    ],
)
def test_the_exit_code_is_the_worst_verdict(found, code, verdicts, tmp_path):
    names = ["subgaussian_noise.pac_bayes", "subgaussian_noise.net"]
    verdicts.update(zip(names, found, strict=True))
    assert cli.main(["verify", "--only", "subgaussian_noise", "--out", str(tmp_path)]) == code
    rows = strict(tmp_path / "report.json")["theorems"]
    assert [row["verdict"] for row in rows] == [verdict.value for verdict in found]


@pytest.mark.slow
def test_everything_is_checked_and_the_networks_studied(verdicts, tiny_network, tmp_path, capsys):
    assert cli.main(["verify", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    rows = strict(tmp_path / "x")
    assert [row["name"] for row in rows["theorems"]] == list(_options.STATEMENTS)
    assert {(row["network"], row["layer"]) for row in rows["layers"]} == {
        ("digits", ".weights[0]"),
        ("digits", ".weights[1]"),
    }
    assert "mnist was skipped: LOWRANK_DATA is not set." in printed
    assert "fitting a layer to its inputs makes the error" in " ".join(printed.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mnist was skipped: LOWRANK_DATA is not set." in page
    for theorem in CONTENTS:
        assert theorem.name in page and theorem.name in printed
    for figure in ("tightness", "layer_errors"):
        assert (tmp_path / "out" / f"{figure}.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("preset", cli.verify.PRESETS)
@pytest.mark.parametrize("name", _options.STATEMENTS)
def test_presets_give_every_regime_its_trials(preset, name):
    statement = _options.STATEMENTS[name]
    least = {"quick": 1_000, "full": 10_000}[preset]
    trials = cli.verify.PRESETS[preset].of(statement)
    assert trials >= least
    assert trials // len(statement.regimes) >= least / 10


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(verdicts, tiny_network, tmp_path):
    assert cli.main(["verify", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    resources = Resources()
    resources.feed(page)
    assert len(resources.fetched) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in resources.fetched)
    assert not resources.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", page)
    assert '<meta name="viewport" content="width=device-width' in page
    assert "math" in resources.tags
    assert not re.search(r"\$|\\[a-zA-Z]", page), "TeX was left in the page"


def test_the_same_findings_make_the_same_files(verdicts, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.verify.time, "monotonic", lambda: 0.0)
    for folder in ("a", "b"):
        cli.main(["verify", "--only", "planted_rank", "--out", str(tmp_path / folder)])
    for path in (tmp_path / "a").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_statement_without_applicable_trials_is_reported(tmp_path, monkeypatch):
    empty = Sample(Direction.UPPER, 9, *(np.zeros(0) for _ in range(3)))
    regime = RegimeReport("square", empty, Verdict.INCONCLUSIVE, float("nan"))
    found = dataclasses.replace(a_statement(STATEMENT), regimes=(regime,))
    monkeypatch.setattr(cli.verify, "sweep", lambda *_, **__: [found])
    assert cli.main(["verify", "--only", STATEMENT, "--out", str(tmp_path)]) == 3
    (row,) = strict(tmp_path / "report.json")["theorems"]
    assert row["critical_constant"] is None and row["ratio_max"] is None
    assert "could not be decided" in (tmp_path / "report.html").read_text()


# --- bad usage ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("verdicts")
class TestBadUsage:
    def test_unknown_names_are_answered_with_the_known(self, capsys, tmp_path):
        line = refused(capsys, "verify", "--out", tmp_path, "--only", "planted_rank", "nonsense")
        assert "'nonsense'" in line
        assert all(theorem.name in line for theorem in CONTENTS)
        assert all(name in line for name in _options.STATEMENTS)

    @pytest.mark.parametrize("seed", ["-1", "1.5", "x", "", str(2**32)])
    def test_seed(self, capsys, seed):
        assert f"got {seed!r}" in refused(capsys, "verify", f"--seed={seed}")

    @pytest.mark.parametrize(
        "arguments", [[], ["nonsense"], ["verify", "--preset", "slow"], ["verify", "--only"]]
    )
    def test_arguments(self, capsys, arguments):
        assert "error: " in refused(capsys, *arguments)

    def test_workers(self, capsys, tmp_path):
        out = ["verify", "--out", tmp_path]
        line = refused(capsys, *out, "--workers", "0")
        assert "--workers: must be a whole number from 1 on; got '0'" in line
        line = refused(capsys, *out, "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
        assert "not allowed with argument --workers" in line

    @pytest.mark.parametrize("command", ["verify", "attack", "scale"])
    def test_scheduler(self, capsys, tmp_path, monkeypatch, command):
        monkeypatch.chdir(tmp_path)
        line = refused(capsys, command, "--scheduler", "nonsense")
        assert "argument --scheduler: " in line

    def test_out_that_is_a_file(self, capsys, tmp_path):
        file = tmp_path / "file"
        file.write_text("mine")
        assert f"{file} is a file" in refused(capsys, "verify", "--out", file)
        assert "Not a directory" in refused(capsys, "verify", "--out", file / "below")
        assert file.read_text() == "mine"

    def test_out_that_holds_something_else(self, capsys, tmp_path):
        (tmp_path / "thesis.tex").touch()
        assert "holds no report.json" in refused(capsys, "verify", "--out", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_json_that_cannot_be_written(self, capsys, tmp_path):
        (tmp_path / "file").touch()
        out = ["verify", "--out", tmp_path / "out", "--json"]
        assert "is a folder" in refused(capsys, *out, tmp_path)
        assert "cannot write" in refused(capsys, *out, tmp_path / "file" / "x.json")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_out_without_permission(self, capsys, tmp_path):
        tmp_path.chmod(0o500)
        assert "cannot write" in refused(capsys, "verify", "--out", tmp_path / "out")


def test_an_earlier_report_is_overwritten(verdicts, tmp_path):
    only = ["verify", "--only", STATEMENT, "--out", str(tmp_path)]
    assert cli.main(only) == 0
    (tmp_path / "mine.txt").write_text("kept")
    assert cli.main([*only, "--seed", "7"]) == 0
    assert strict(tmp_path / "report.json")["seed"] == 7
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_help_says_what_the_exit_codes_mean(capsys):
    assert cli.main(["verify", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 if any is refuted" in printed and "overwritten file by file" in printed


# --- interruption ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_where_another_was_cut_short(tmp_path, capsys, monkeypatch):
    """Statement by statement: what one process found before, two find again and go on from."""
    first, second = "singular_values.weyl", "singular_values.mirsky"
    run = ["verify", "--out", str(tmp_path), "--only"]
    assert cli.main([*run, first]) == 0
    points = list((tmp_path / "points").iterdir())
    (tmp_path / "report.json").unlink()  # as if it had been interrupted
    for path in tmp_path.glob("*.[hs]*"):
        path.unlink()
    points[0].write_bytes(b"torn")
    capsys.readouterr()
    assert cli.main([*run, first, second, "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{points[0].name} is corrupt" in printed and "computed anew" in printed
    assert f"{len(points) - 1} of {2 * len(points)} points had been computed before." in printed
    assert re.search(rf"{second}: \d+ of {2 * len(points)} points after \d+ s, \d+ s left", printed)
    found = strict(tmp_path / "report.json")["theorems"]
    assert cli.main([*run, first, second]) == 0
    assert strict(tmp_path / "report.json")["theorems"] == found
    assert len(list((tmp_path / "points").iterdir())) == 2 * len(points)


def test_a_worker_that_is_lost_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    def lost(*_, **__):
        with cli.verify.lost_workers():
            raise BrokenProcessPool("gone")

    monkeypatch.setattr(cli.verify, "sweep", lost)
    assert cli.main(["verify", "--out", str(tmp_path), "--only", STATEMENT]) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the same again goes on from there" in error


def test_an_interrupted_run_writes_no_report(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.verify, "sweep", interrupted)
    only = ["verify", "--out", str(tmp_path), "--only", STATEMENT]
    assert cli.main(only) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["points"]
    assert cli.main(only) == 130  # not refused for what the first has left


def test_a_disk_that_fills_up_is_told(verdicts, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_atomically", full)
    assert cli.main(["verify", "--only", STATEMENT, "--out", str(tmp_path)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error


FAULTS = {
    "a full disk": (OSError(28, "No space left on device"), 4),
    "a quota": (OSError(122, "Disk quota exceeded"), 4),
    "nobody reads": (SystemExit(1), 4),  # how rich ends where a pipe is closed
    "no memory": (MemoryError(), 5),
    "other sources": (RuntimeError("other sources"), 5),
    "a fault": (ZeroDivisionError(), 5),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["verify", "attack", "scale", "transfer"])
def test_nothing_but_a_finding_has_the_code_of_one(
    command, fault, verdicts, tmp_path, capsys, monkeypatch
):
    error, code = FAULTS[fault]

    def fails(*_, **__):
        raise error

    where = {"verify": "sweep", "attack": "attack", "scale": "scale", "transfer": "transfer"}
    monkeypatch.setattr(getattr(cli, command), where[command], fails)
    what = {"attack": ["--only", "planted_rank.any_noise"], "transfer": ["digits"]}
    out = [] if command == "scale" else ["--out", str(tmp_path)]
    assert cli.main([command, *what.get(command, ["--only", "planted_rank"]), *out]) == code
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (code == 5)


@pytest.mark.parametrize("command", ["verify", "attack", "scale", "transfer"])
def test_help_names_every_exit_code(command, capsys):
    assert cli.main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split()).partition("Exit code: ")[2]
    codes = {cli.BAD_USAGE, cli.CANNOT_WRITE, cli.FAILED, cli.INTERRUPTED}
    assert all(f"{code} " in printed for code in {0} | codes)
    assert len(codes | set(_options.EXIT_CODES.values())) == 7, "a code of its own each"


def test_a_run_killed_while_it_wrote_its_report_goes_on(verdicts, tmp_path, monkeypatch):
    run = ["verify", "--only", STATEMENT, "--out", str(tmp_path)]
    left = tmp_path / ".report.json.0.tmp"
    left.write_text("half")
    assert cli.main(run) == 0
    assert not left.exists() and strict(tmp_path / "report.json")["seed"] == 0


@pytest.mark.slow
def test_the_command_is_quiet_about_how_it_computes(tmp_path):
    code = "import sys; from lowrank_theory.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, "verify", "--seed", "-1"],
        capture_output=True, text=True, check=False, timeout=120, cwd=Path(cli.__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lowrank-theory verify: error: argument --seed")
    assert all(line.startswith(("usage:", " ", "lowrank")) for line in done.stderr.splitlines())
