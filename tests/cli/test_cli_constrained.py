"""Networks without data from the command line, and the study behind it."""

import pytest

from commands import refused, strict
from lowrank_theory import cli
from lowrank_theory.models.catalogue import Sizes
from lowrank_theory.studies import data_free as study

SMALL = Sizes(calibration=120, held_out=10, units=10, items=200, batch=40)


@pytest.fixture(scope="module")
def found():
    return study.data_free("digits_cnn", 0.5, sizes=SMALL)


def test_drawn_calibrations_stand_between_none_and_real_ones(found):
    exact, rows = found
    assert [row.calibration for row in rows] == list(study.KINDS)
    none, independent, correlated, real = (row.accuracy for row in rows)
    assert none < independent <= correlated + 0.05 and correlated <= real + 0.02 <= exact + 0.03
    assert all(row.low <= exact - row.accuracy <= row.high and row.seconds > 0 for row in rows)


def test_the_command_prints_and_writes_the_rows(found, tmp_path, capsys, monkeypatch):
    asked = []

    def given(*arguments, **options):
        asked.append((arguments, options["seed"]))
        return found

    monkeypatch.setattr(cli.constrained, "data_free", given)
    file = tmp_path / "rows.json"
    arguments = ["constrained", "data-free", "digits_cnn", "--share", "0.5", "--seed", "3"]
    assert cli.main([*arguments, "--json", str(file)]) == 0
    assert asked == [(("digits_cnn", 0.5), 3)]
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in ("dense", *study.KINDS))
    assert [row["calibration"] for row in strict(file)["rows"]] == list(study.KINDS)


def test_what_cannot_be_asked_is_refused(capsys, monkeypatch):
    line = refused(capsys, "constrained", "data-free", "digits")
    assert "invalid choice: 'digits'" in line and "digits_cnn" in line
    assert "argument --share: must be" in refused(
        capsys, "constrained", "data-free", "digits_cnn", "--share", "2"
    )
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    line = refused(capsys, "constrained", "data-free", "resnet20")
    assert "argument NETWORK: resnet20 cannot be read: LOWRANK_DATA is not set" in line
    with pytest.raises(ValueError, match="whose normalisation is kept apart, of digits_cnn"):
        study.data_free("mnist")
