"""Texts are read as they are published, other files are refused, and the measures are right."""

import math
from pathlib import Path

import numpy as np
import pytest

from lowrank_theory.models import texts


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    for name in ("stsb", "ag_news"):
        (tmp_path / name).mkdir()
    for part in ("train", "dev", "test"):
        rows = f"genre\tfile\tyear\t1\t2.5\tIt's \"{part}\tÜber.\tlicence\n" * 2
        (tmp_path / "stsb" / f"sts-{part}.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "ag_news" / "train_subset_5000.csv").write_text('"A ""title"" text",2\nOther,0\n')
    (tmp_path / "ag_news" / "test.csv").write_text('"3","Title","One\\ntwo\\three"\n')
    return tmp_path


def test_pairs_are_read(folder):
    data = texts.stsb_data()
    assert data.test.first == ("It's \"test",) * 2 and data.training.second == ("Über.",) * 2
    np.testing.assert_array_equal(data.development.scores, [2.5, 2.5])
    for line in ("a\tb\tc\td\t5.5\te\tf", "a\tb\tc\td\t1\te", "a\tb\tc\td\tx\te\tf"):
        (folder / "stsb" / "sts-dev.csv").write_text("g\tf\ty\t1\t2\ta\tb\n" + line)
        with pytest.raises(
            ValueError, match=r"(?s)sts-dev\.csv is damaged.*line 2 has not a score"
        ):
            texts.stsb_data()


def test_news_are_read_in_both_forms(folder):
    data = texts.ag_news_data()
    assert data.training.texts == ('A "title" text', "Other")
    np.testing.assert_array_equal(data.training.labels, [2, 0])
    assert data.test.texts == ("Title One two three",)
    np.testing.assert_array_equal(data.test.labels, [2])
    (folder / "ag_news" / "train.csv").write_text('"1","Whole","set"\n')
    assert texts.ag_news_data().training.texts == ("Whole set",)
    for row in ('"5","Title","Text"', "Text,4", "Text", "a,b,c,d", "12,Title,Text"):
        (folder / "ag_news" / "test.csv").write_text(row)
        with pytest.raises(ValueError, match=r"(?s)test\.csv is damaged.*row 1 is neither"):
            texts.ag_news_data()


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    for load, name in (
        (texts.stsb_data, r"sts-train\.csv"),
        (texts.ag_news_data, r"train\.csv or .*train_subset_5000\.csv"),
    ):
        with pytest.raises(FileNotFoundError, match=f"(?s){name} is missing.*must hold"):
            load()
        monkeypatch.delenv("LOWRANK_DATA")
        with pytest.raises(FileNotFoundError, match=r"LOWRANK_DATA is not set"):
            load()
        monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))


# --- metrics --------------------------------------------------------------------------------------


def test_rank_correlation_of_cosines():
    angles = np.array([0.1, 0.5, 1.0, 2.0])
    first = np.tile([1.0, 0.0], (4, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert texts.spearman(first, second, np.array([5.0, 4, 1, 0])) == pytest.approx(1)
    assert texts.spearman(first, second, np.array([5.0, 4, 0, 1])) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"got \(4, 2\), \(4, 2\) and \(3,\)"):
        texts.spearman(first, second, np.ones(3))


def test_the_probe_is_the_minimiser():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    embeddings = np.eye(3)[labels] @ random.normal(size=(3, 5)) + random.normal(size=(60, 5))
    fitted, held_out = embeddings[:40], embeddings[40:]
    found = texts.probe_correct(fitted, labels[:40], held_out, labels[40:], penalty=0.7)
    # the same as least squares with rows for the penalty, and none for the column of ones
    rows = np.block([[fitted, np.ones((40, 1))], [math.sqrt(0.7) * np.eye(5), np.zeros((5, 1))]])
    wanted = np.vstack([np.eye(3)[labels[:40]], np.zeros((5, 3))])
    weights = np.linalg.lstsq(rows, wanted)[0]
    answers = held_out @ weights[:-1] + weights[-1]
    np.testing.assert_array_equal(found, answers.argmax(axis=1) == labels[40:])
    assert 0 < found.mean() < 1
    with pytest.raises(ValueError, match=r"`held_out_labels` must have shape \(20,\).*got \(19,\)"):
        texts.probe_correct(fitted, labels[:40], held_out, labels[41:])
    with pytest.raises(ValueError, match="`held_out` has 4 columns"):
        texts.probe_correct(fitted, labels[:40], held_out[:, 1:], labels[40:])
