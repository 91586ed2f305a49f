"""A network at low rank that learns from itself, without labels."""

import jax
import numpy as np
import pytest

from lowrank_theory.models.catalogue import Sizes, available
from lowrank_theory.models.normalised import NORM
from lowrank_theory.studies.distilled import NETWORKS, distillation_optimiser, distilled

SMALL = Sizes(calibration=400, held_out=200, units=10, items=300, batch=100)
TINY = Sizes(calibration=70, held_out=20, units=10, items=20, batch=20)


@pytest.fixture(scope="module")
def found():
    return distilled("digits", epochs=12, sizes=SMALL)


def test_factors_recover_what_low_rank_has_lost(found):
    exact, (before, after) = found
    assert [row.network for row in (before, after)] == ["low rank", "distilled"]
    assert before.accuracy < after.accuracy <= exact and before.agreement < after.agreement
    assert after.divergence < before.divergence
    assert all(row.low <= exact - row.accuracy <= row.high for row in (before, after))
    gained = after.accuracy - before.accuracy
    assert 0 < after.gained_low <= gained <= after.gained_high
    np.testing.assert_allclose(after.recovered, gained / (exact - before.accuracy))
    assert before.recovered is before.gained_low is before.gained_high is None


def test_a_run_that_was_stopped_goes_on(found, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(name, done, total):
        assert name == "distillation" and total == 12
        if done == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        distilled("digits", epochs=12, sizes=SMALL, folder=tmp_path, progress=stop)
    seen = []
    exact, rows = distilled(
        "digits", epochs=12, sizes=SMALL, folder=tmp_path,
        progress=lambda name, done, total: seen.append(done),
    )  # fmt: skip
    assert seen == [8, 9, 10, 11, 12]
    assert exact == found[0]
    for mine, theirs in zip(rows, found[1], strict=True):
        assert mine.row() | {"seconds": 0} == theirs.row() | {"seconds": 0}


def test_where_nothing_is_lost_nothing_is_recovered():
    _, (before, after) = distilled("digits", 0.9, epochs=1, sizes=TINY)
    assert before.high <= 0 and after.recovered is None


def test_what_a_normalisation_keeps_does_not_learn():
    ones = np.ones(2, np.float32)
    parameters = {"kernel": ones, "norm": dict.fromkeys(NORM, ones)}
    optimiser = distillation_optimiser(8)
    updates, _ = optimiser.update(parameters, optimiser.init(parameters), parameters)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        kept = jax.tree_util.keystr(path).endswith(("['mean']", "['variance']"))
        assert bool((np.asarray(update) == 0).all()) == kept


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(ValueError, match=r"that classifies images, of digits, .*; got 'minilm'"):
        distilled("minilm")
    with pytest.raises(ValueError, match="`images` must be"):
        distilled("digits", images=200)
    with pytest.raises(ValueError, match="`share` must lie"):
        distilled("digits", 1.5)


@pytest.mark.slow
def test_a_share_that_leaves_less_than_rank_one_is_refused():
    with pytest.raises(ValueError, match="share"):
        distilled("digits", 0.001, sizes=TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "digits"])
def test_every_network_of_the_list_learns(name):
    if available(name) is not None:
        pytest.skip(f"the data of {name} are not there")
    sizes = Sizes(calibration=130, held_out=100, units=10, items=100, batch=50)
    exact, (before, after) = distilled(name, 0.5, epochs=2, sizes=sizes)
    assert 0 <= before.accuracy <= exact + 0.1 and np.isfinite(after.divergence)
