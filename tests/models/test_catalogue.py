"""The networks of the catalogue: what is fitted, what is judged, what is said where data lack."""

import dataclasses

import jax
import numpy as np
import pytest

from lowrank_theory.models import catalogue
from lowrank_theory.models.catalogue import CASES, Sizes, available, find
from lowrank_theory.networks import Tokens, digits_data, digits_network

pytestmark = pytest.mark.thinned(2)

SMALL = Sizes(calibration=24, held_out=12, units=10, items=8, batch=8)
READ = [name for name in CASES if name != "digits"]


def rows(batches) -> np.ndarray:
    """Every unit of some batches as one row of numbers."""
    return np.concatenate(
        [
            np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(b)], 1)
            for b in batches
        ]
    )


def test_digits_are_fitted_to_training_images_only():
    loaded, data = CASES["digits"].load(), digits_data()
    np.testing.assert_array_equal(rows(loaded.calibration), data.training_images)
    np.testing.assert_array_equal(rows(loaded.held_out), data.held_out_images)
    np.testing.assert_array_equal(rows(loaded.units), data.held_out_images[:400])
    assert all(len(unit) == 1 for unit in loaded.units)


def test_the_metric_is_the_networks_and_paired():
    loaded, data = CASES["digits"].load(), digits_data()
    network = digits_network()
    scores = loaded.metric.scores(loaded.function, loaded.parameters)
    accuracy = float(network.accuracy(data.held_out_images, data.held_out_labels))
    assert scores.shape == data.held_out_labels.shape
    assert loaded.metric.value(scores) == pytest.approx(accuracy, abs=1e-6)
    wrong = loaded.metric.scores(lambda p, x: -loaded.function(p, x), loaded.parameters)
    assert not (scores & wrong).any()
    assert loaded.metric.larger_is_better


@pytest.mark.parametrize("name", READ)
def test_each_network_is_loaded(name, request):
    missing = available(name)
    if missing is not None:
        pytest.skip(f"{name}: {missing.splitlines()[0]}")
    loaded = CASES[name].load(SMALL)
    assert len(loaded.calibration) >= 2 and len(loaded.held_out) >= 1
    assert len(rows(loaded.units[:1])) == 1 and len(loaded.units) >= SMALL.units // 2
    leaves = jax.tree_util.tree_leaves_with_path(loaded.parameters)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert any(loaded.select is None or loaded.select(path) for path in paths)
    results = jax.eval_shape(loaded.function, loaded.parameters, loaded.units[0])
    assert jax.tree.leaves(results)[0].shape[0] == 1
    if name not in ("minilm", "ag_news"):  # whose sentences are of several lengths
        fitted = {row.tobytes() for row in rows(loaded.calibration)}
        assert not fitted & {row.tobytes() for row in rows(loaded.held_out + loaded.units)}


def test_windows_stand_apart_and_are_as_many_as_asked():
    codes = np.arange(100_000)
    windows = catalogue._windows(codes, 50)
    assert windows.shape == (50, catalogue.WINDOW)
    assert (np.diff(windows, axis=1) == 1).all()
    assert (np.diff(windows[:, 0]) >= catalogue.WINDOW + catalogue.APART).all()
    few = catalogue._windows(codes, 10**6)
    assert len(few) == len(range(0, 100_000 - 200, 600))
    shuffled = catalogue._shuffled(windows)
    assert (shuffled != windows).any()
    np.testing.assert_array_equal(np.sort(shuffled[:, 0]), windows[:, 0])


def test_sentences_fill_their_batches(monkeypatch):
    def tokens(texts, *, length):
        kept = [text.split()[:length] for text in texts]
        width = max(map(len, kept))
        mask = np.array([[k < len(words) for k in range(width)] for words in kept])
        return Tokens(np.array([[int(words[0])] * width for words in kept], np.int32), mask)

    monkeypatch.setattr(catalogue, "bert_tokens", tokens)
    random = np.random.default_rng(0)
    texts = [f"{k} " * n for k, n in enumerate(random.integers(2, 60, 400))]
    batches = catalogue._sentences(texts, 200, 4)
    assert all(batch.mask.all() for batch in batches)
    assert {batch.ids.shape for batch in batches} == {(4, n) for n in catalogue.LENGTHS}
    for batch in batches:
        for row in batch.ids:
            filled = len(texts[row[0]].split())
            assert max(n for n in catalogue.LENGTHS if n <= filled) == len(row)
    taken = sum(len(batch.ids) for batch in batches)
    assert 200 - 3 * 4 < taken <= 203
    short = [batch.ids.shape[1] == catalogue.LENGTHS[0] for batch in batches]
    half = len(batches) // 2
    assert abs(sum(short[:half]) - sum(short[half:])) <= 1 and sum(short) > 5


def test_similarity_is_that_of_the_pairs(monkeypatch):
    value = catalogue._rank_correlation
    scores = np.array([[0.1, 0.0], [0.5, 2.0], [0.4, 5.0], [0.9, 5.5]])
    assert value(scores) == pytest.approx(0.8)
    assert value(scores * [2, 0.1]) == pytest.approx(0.8)


# --- what is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in READ if n not in {"alexnet", "digits_cnn"}])
def test_without_the_folder_it_says_what_to_get(name, monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    missing = available(name)
    assert missing is not None
    assert missing.startswith("LOWRANK_DATA is not set") and "must hold" in missing
    with pytest.raises(FileNotFoundError, match="LOWRANK_DATA is not set"):
        CASES[name].load(SMALL)


def test_the_embedded_network_needs_nothing(monkeypatch):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    assert available("digits") is None


def test_an_unknown_network_is_answered_with_the_known():
    for asked in (find, available):
        with pytest.raises(ValueError, match="no network 'nonsense'; there are digits, "):
            asked("nonsense")


def test_sizes_that_cannot_be_halved():
    for changed, reason in (
        ({"batch": 24}, "`calibration` must be above `batch`"),
        ({"units": 1}, "`units` must be an integer >= 2"),
        ({"passes": 0}, "`passes` must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            dataclasses.replace(SMALL, **changed)
