"""Networks without data, labels or a fixed size from the command line; and without data, the study
behind it.
"""

import dataclasses

import pytest

from commands import refused, strict
from lowrank_theory import cli
from lowrank_theory.models.catalogue import Sizes
from lowrank_theory.studies import data_free as study
from lowrank_theory.studies.data_free import DataFreeRow
from lowrank_theory.studies.distilled import DistilledRow
from lowrank_theory.studies.subspaces import SubspaceRow

SMALL = Sizes(calibration=120, held_out=10, units=10, items=200, batch=40)
SCENARIOS = cli.constrained.SCENARIOS
LOST = {"accuracy": 0.8, "low": 0.1, "high": 0.2}
ROWS = {
    "data-free": DataFreeRow(calibration="real", **LOST, seconds=1.0),
    "distill": DistilledRow(
        network="low rank", **LOST, agreement=0.87, divergence=0.25, seconds=1.0
    ),
    "subspace": SubspaceRow(size="3 bits", kept=None, cut=0.75, nested=None, **LOST),
}


def test_drawn_calibrations_stand_between_none_and_real_ones():
    exact, rows = study.data_free("digits_cnn", 0.5, sizes=SMALL)
    assert [row.calibration for row in rows] == list(study.KINDS)
    none, independent, correlated, real = (row.accuracy for row in rows)
    assert none < independent <= correlated + 0.05 and correlated <= real + 0.02 <= exact + 0.03
    assert all(row.low <= exact - row.accuracy <= row.high and row.seconds > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "words", "settings"),
    [
        ("data-free", "digits_cnn --share 0.5", {"share": 0.5}),
        (
            "distill",
            "digits --share 0.2 --epochs 3 --images 400",
            {"share": 0.2, "epochs": 3, "images": 400},
        ),
        (
            "subspace",
            "digits_cnn --level rank --kind point --epochs 4",
            {"level": "rank", "kind": "point", "epochs": 4},
        ),
    ],
)
def test_a_scenario_prints_and_writes_its_rows(
    name, words, settings, tmp_path, capsys, monkeypatch
):
    asked = {}

    def given(network, **options):
        asked.update(options, network=network)
        options["progress"]("training", 1, 2)
        return 0.95, [ROWS[name]]

    monkeypatch.setitem(SCENARIOS, name, dataclasses.replace(SCENARIOS[name], study=given))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.json"
    arguments = ["constrained", name, *words.split(), "--seed", "3", "--json", str(file)]
    assert cli.main(arguments) == 0
    network = words.split()[0]
    expected = {**settings, "network": network, "seed": 3}
    assert {key: asked[key] for key in expected} == expected
    if name == "data-free":
        assert "folder" not in asked
    else:
        assert asked["folder"].resolve() == tmp_path / "out" / "constrained" / name / network
        assert asked["folder"].is_dir()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("training: 1 of 2", "dense", "0.95", "0.8"))
    assert strict(file) == {"accuracy": 0.95, "rows": [ROWS[name].row()]}


def test_what_cannot_be_asked_is_refused(tmp_path, capsys, monkeypatch):
    line = refused(capsys, "constrained", "data-free", "digits")
    assert "argument NETWORK: must be a network whose normalisation is kept apart, of" in line
    line = refused(capsys, "constrained", "distill", "minilm")
    assert "must be a network that classifies images, of digits, digits_cnn, mnist" in line
    line = refused(capsys, "constrained", "subspace", "alexnet")
    assert "must be a network that is trained here, of digits_cnn; got 'alexnet'" in line
    for share in ("2", "0", "1", "nan", "half"):
        line = refused(capsys, "constrained", "distill", "digits", "--share", share)
        assert "argument --share: must be a share strictly between 0 and 1" in line
    line = refused(capsys, "constrained", "subspace", "digits_cnn", "--level", "size")
    assert "argument --level: invalid choice: 'size'" in line
    line = refused(capsys, "constrained", "subspace", "digits_cnn", "--epochs", "0")
    assert "argument --epochs: must be a whole number from 1 on" in line
    file = tmp_path / "file"
    file.touch()
    for name, network in (("distill", "digits"), ("subspace", "digits_cnn")):
        line = refused(capsys, "constrained", name, network, "--out", file)
        assert f"cannot write {file}: It is no folder" in line
    line = refused(capsys, "constrained", "distill", "digits", "--json", tmp_path)
    assert "It is a folder, not a file" in line
    line = refused(capsys, "constrained", "distill", "digits", "--images", 9, "--out", tmp_path)
    assert "`images` must be" in line
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    for name in ("data-free", "distill"):
        line = refused(capsys, "constrained", name, "resnet20")
        assert "argument NETWORK: resnet20 cannot be read: LOWRANK_DATA is not set" in line
    with pytest.raises(ValueError, match="whose normalisation is kept apart, of digits_cnn"):
        study.data_free("mnist")
