"""Texts to judge embeddings on, and how: the similarity of sentences and the topics of news.

They are read from a folder of the user's, see `STSB_LAYOUT` and `AG_NEWS_LAYOUT`.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from lowrank_theory._numerics import check_positive, check_same
from lowrank_theory.models._sources import Source

STSB_LAYOUT = """\
  stsb/sts-train.csv, stsb/sts-dev.csv, stsb/sts-test.csv
    the semantic textual similarity benchmark, Stsbenchmark.tar.gz at
    http://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark"""

AG_NEWS_LAYOUT = """\
  ag_news/train.csv, ag_news/test.csv
    ag_news_csv of Zhang, Zhao and LeCun (2015): class from 1, title, description
  or, instead of the first, ag_news/train_subset_5000.csv
    data/ag_news/train.csv of github.com/lst11111/bert-text-classification: text, class from 0"""

_STSB = Source("stsb", STSB_LAYOUT)
_AG_NEWS = Source("ag_news", AG_NEWS_LAYOUT)


# --- the similarity of sentences -----------------------------------------------------------------


class Pairs(NamedTuple):
    """Pairs of sentences, and how similar people found them, from 0 to 5."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: Float[np.ndarray, " pairs"]


class Stsb(NamedTuple):
    """The three parts of the semantic textual similarity benchmark (Cer et al. 2017)."""

    training: Pairs
    development: Pairs
    test: Pairs


def stsb_data() -> Stsb:
    """The 5,749, 1,500 and 1,379 pairs of sentences.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged; both
    say which, and where to get it.
    """
    return Stsb(*map(_pairs, ("sts-train.csv", "sts-dev.csv", "sts-test.csv")))


def _pairs(name: str) -> Pairs:
    path, content = _STSB.text(name)
    rows = [line.split("\t") for line in content.removesuffix("\n").split("\n")]
    for number, row in enumerate(rows, start=1):
        if len(row) < 7 or not _is_score(row[4]):
            reason = f"line {number} has not a score from 0 to 5 as its fifth of seven columns"
            raise _STSB.damaged(path, reason)
    first, second = (tuple(row[column].strip() for row in rows) for column in (5, 6))
    return Pairs(first, second, np.array([float(row[4]) for row in rows]))


def _is_score(text: str) -> bool:
    try:
        return 0 <= float(text) <= 5
    except ValueError:
        return False


def spearman(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> float:
    """The rank correlation of the scores (pairs,) with the cosines of the embeddings (pairs, width)
    of both sentences, which have length one.

    Raises `ValueError` where these are not two embeddings and a score for each of several pairs.
    """
    if first.shape != second.shape or scores.shape != first.shape[:1] or len(scores) < 2:
        raise ValueError(
            "`first` and `second` must have one embedding, and `scores` one entry, for each of two "
            f"pairs or more; got {first.shape}, {second.shape} and {scores.shape}."
        )
    cosines = np.sum(first.astype(np.float64) * second.astype(np.float64), axis=1)
    found: Any = scipy.stats.spearmanr(cosines, scores)
    return float(found.statistic)


# --- the topics of news --------------------------------------------------------------------------


class News(NamedTuple):
    """Texts and their classes from 0: world, sports, business, science and technology."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, " texts"]


class AgNews(NamedTuple):
    """The two parts of AG News (Zhang, Zhao and LeCun 2015)."""

    training: News
    test: News


def ag_news_data() -> AgNews:
    """The 120,000 training texts, or 5,000 of them, and the 7,600 test texts.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged; both
    say which, and where to get it.
    """
    return AgNews(_news("train.csv", "train_subset_5000.csv"), _news("test.csv"))


def _news(*names: str) -> News:
    path, content = _AG_NEWS.text(*names)
    texts, labels = [], []
    for number, row in enumerate(_rows(path, content), start=1):
        classes = "1234" if len(row) == 3 else "0123"
        label = row[0] if len(row) == 3 else row[-1] if row else ""
        if len(row) not in (2, 3) or label not in tuple(classes):
            reason = f"row {number} is neither class, title and text nor text and class"
            raise _AG_NEWS.damaged(path, reason)
        text = " ".join(row[1:]) if len(row) == 3 else row[0]
        texts.append(text.replace("\\n", " ").replace("\\", " "))  # how the files mark new lines
        labels.append(classes.index(label))
    return News(tuple(texts), np.array(labels, np.int32))


def _rows(path: Path, content: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(content, newline="")))
    except csv.Error as error:
        raise _AG_NEWS.damaged(path, error) from error


def probe_correct(
    training: np.ndarray,
    training_labels: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    *,
    penalty: float = 1.0,
) -> Bool[np.ndarray, " held_out"]:
    r"""Which held-out embeddings (texts, width) a linear probe on the training ones puts in their
    class; the mean is its accuracy.

    With one column of $Y$ per class, 1 where a text is of the class, the probe is the minimiser of
    $\|E W + \mathbf 1 b^\top - Y\|_F^2 + \lambda \|W\|_F^2$, and the class the largest entry of
    $E W + \mathbf 1 b^\top$. The penalty $\lambda$ is fixed beforehand, not tuned.

    Raises `ValueError` where there is not one label for each embedding, or one width for all, and
    for a penalty that is not positive.
    """
    for name, embeddings, labels in (
        ("training", training, training_labels),
        ("held_out", held_out, held_out_labels),
    ):
        if not len(embeddings) or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"`{name}_labels` must have shape ({len(embeddings)},), one per embedding, and "
                f"there must be some; got {labels.shape}."
            )
    check_same("held_out", held_out.shape[1], "training", training.shape[1], "columns")
    penalty = check_positive("penalty", penalty)
    fitted = training.astype(np.float64)
    classes = np.eye(int(training_labels.max()) + 1)[training_labels]
    centre, mean = fitted.mean(axis=0), classes.mean(axis=0)
    centred = fitted - centre
    gram = centred.T @ centred + penalty * np.eye(centred.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (classes - mean))
    answers = (held_out.astype(np.float64) - centre) @ weights + mean
    return np.argmax(answers, axis=1) == held_out_labels
