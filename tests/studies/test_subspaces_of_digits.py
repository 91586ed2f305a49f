"""One network that is trained for every size, beside the dense one that is cut."""

import jax
import numpy as np
import pytest

from lowrank_theory.data_constrained import Narrowed, Pruned, Rounded, Truncated
from lowrank_theory.models import digits_cnn
from lowrank_theory.models.digits import digits_data
from lowrank_theory.studies import subspaces as study
from lowrank_theory.studies.subspaces import CHANNELS, KERNELS, KINDS, LEVELS, subspaces


def test_two_runs_are_kept_and_gone_on_from(tmp_path):
    seen = []
    exact, rows = subspaces(
        level="bits", kind="point", epochs=1, folder=tmp_path,
        progress=lambda name, done, total: seen.append((name, done, total)),
    )  # fmt: skip
    assert seen == [("training", 1, 2), ("training", 2, 2)] and 0.1 <= exact <= 1
    assert [row.size for row in rows] == ["3 bits", "4 bits", "5 bits", "8 bits"]
    for row in rows:
        assert row.low <= row.accuracy - row.cut <= row.high and row.kept is row.nested is None
    again = subspaces(level="bits", kind="point", epochs=1, folder=tmp_path)
    assert again == (exact, rows) and len(list(tmp_path.iterdir())) == 2


def test_sizes_are_those_of_the_arrays():
    parameters = digits_cnn.initial_parameters(key=jax.random.key(0))
    images = digits_data().training_images[:2]
    function = lambda p, x: study.logits(p, x, study.BY_GROUPS)  # noqa: E731
    kernels = {path: parameters[path.split("'")[1]]["kernel"] for path in KERNELS}
    dense = sum(kernel.size for kernel in kernels.values())
    assert dense == study.NUMBERS
    assert study.numbers_kept(Pruned(KERNELS), 0.2) == 0.2
    assert study.numbers_kept(Rounded(KERNELS), 0.5) is None
    replaced, factored = study.with_factors(function, parameters, images)
    np.testing.assert_allclose(
        replaced(factored, images), function(parameters, images), rtol=1e-4, atol=1e-4
    )
    for level in (3 / 32, 0.5):
        cut = Truncated(KERNELS)(factored, level)
        kept = [study.leaves_by_path(cut)[path] for path in KERNELS]
        ranks = [int((np.abs(each.left).sum(axis=-2) > 0).sum()) for each in kept]
        numbers = sum(
            rank * (each.left.shape[-2] + each.right.shape[-1])
            for rank, each in zip(ranks, kept, strict=True)
        )
        assert study.numbers_kept(Truncated(KERNELS), level) == pytest.approx(numbers / dense)
    compressor = Narrowed(CHANNELS)
    narrow = compressor(parameters, 0.2)
    outputs = {
        name: int((np.abs(narrow[name]["kernel"]).sum((0, 1, 2)) > 0).sum())
        for name in digits_cnn.CHANNELS
    }
    pairs = zip(list(outputs.values())[:-1], list(outputs.values())[1:], strict=True)
    numbers = sum(9 * i * o for i, o in pairs)
    assert study.numbers_kept(compressor, 0.2) == pytest.approx(numbers / dense)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="that is trained here, of digits_cnn; got 'mnist'"):
        subspaces("mnist")
    with pytest.raises(ValueError, match="`level` must be one of sparsity, width, bits, rank"):
        subspaces(level="size")
    with pytest.raises(ValueError, match="`kind` must be one of line, point"):
        subspaces(kind="plane")
    with pytest.raises(ValueError, match="`epochs` must be"):
        subspaces(epochs=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_one_that_is_trained_for_small_sizes_is_better_at_them(level, kind):
    exact, rows = subspaces(level=level, kind=kind, epochs=12)
    assert exact > 0.8 and rows[-1].accuracy > 0.6  # twelve epochs are few
    assert (rows[-1].nested is not None) == (level == "rank")
    if level != "bits":  # three bits are enough without
        assert max(row.low for row in rows[:6]) > 0
