"""Laws of several kinds of approximation under one budget: judged apart, and the best returned."""

import functools
from typing import Any

import numpy as np
import pytest

from ladders import LADDERS
from lowrank_theory._engine.competition import Squares
from lowrank_theory.networks import (
    Bytes,
    IdealBits,
    LayerError,
    MultiplyAdds,
    Parameters,
    RankRule,
    compress,
    load_compressed,
)
from lowrank_theory.quantisation import GPTQ, RoundToNearest
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD
from lowrank_theory.sparsification import Magnitude
from routes import normal
from small_networks import mlp, products, rows, stored
from tolerance import approx

LOW_RANK, ROUNDED, SPARSE = ActivationWeighted(), RoundToNearest((2, 3, 4, 8)), Magnitude()
METHODS = [LOW_RANK, ROUNDED, SPARSE]
NAMES = ("ActivationWeighted", "RoundToNearest", "Magnitude")


@functools.cache
def mixed(share, target=Bytes, order=(0, 1, 2), *, sequential=False):
    network, methods = mlp(), [METHODS[k] for k in order]
    given = network.function, network.parameters, network.batches
    return network, compress(*given, target(share), method=methods, sequential=sequential)


def layer(w, x):
    return x @ w


def loss(outputs, others):
    outputs, others = np.asarray(outputs, float), np.asarray(others, float)
    return np.sum((outputs - others) ** 2) / np.sum(outputs**2)


@pytest.mark.parametrize("target", [Bytes, IdealBits])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_no_kind_alone_is_planned_to_lose_less_than_the_mixture(share, target):
    _, found = mixed(share, target)
    candidates = found.candidates
    assert set(candidates) == {"mixture", *NAMES}
    met: dict[str, Any] = {n: each for n, each in candidates.items() if each.unmet is None}
    planned = {name: each.planned for name, each in met.items()}
    assert planned["mixture"] == min(planned.values())
    assert found.provenance["lower_bound"] <= planned["mixture"]
    best = min(met, key=lambda name: met[name].output_loss)
    assert found.provenance["planned"] == planned[best]
    assert found.gap == found.provenance["planned"] - found.provenance["lower_bound"]
    taken = {each.method for each in found.layers.values() if each.size}
    returned = found.provenance["returned"]
    assert returned == (taken.pop() if len(taken) == 1 else "mixture")
    for path, arrays in stored(found).items():
        replaced = found.layers[path]
        assert replaced.size is None or replaced.bytes == sum(array.nbytes for array in arrays)
    if target is Bytes:
        assert found.storage_bytes <= share * found.dense_storage_bytes


def test_each_layer_says_by_how_much_its_kind_won():
    _, found = mixed(0.7)
    won = [each for each in found.layers.values() if each.size is not None]
    assert won
    assert found.provenance["planned"] == approx(sum(each.loss or 0.0 for each in won))
    for each in won:
        assert each.rival in set(NAMES) - {each.method}
        assert each.rival_loss is not None and each.loss is not None
        assert each.margin == each.rival_loss - each.loss
        assert found.provenance["returned"] != "mixture" or each.rival_loss >= each.loss
        assert f"against {each.rival_loss:.3g} by {each.rival}" in repr(found)
    assert found.provenance["returned"] in repr(found)


def test_a_kind_that_cannot_meet_the_budget_says_so():
    _, found = mixed(0.15)
    unmet = found.candidates["ActivationWeighted"]
    assert unmet.unmet is not None and "cannot be met" in unmet.unmet
    assert unmet.planned is None and unmet.output_loss is None
    assert "not within the budget: " in repr(found)


@pytest.mark.parametrize("target", [Bytes, IdealBits])
def test_the_order_of_the_methods_does_not_matter(target):
    one, other = (mixed(0.5, target, order)[1] for order in ((0, 1, 2), (2, 0, 1)))
    assert one.layers == other.layers
    assert one.provenance["planned"] == other.provenance["planned"]
    assert one.candidates == other.candidates


def test_what_follows_its_half_too_closely_is_not_preferred():
    """Six rows of twelve inputs: a rank of six gives them their outputs, and no others."""
    weights, few, many = normal(0, 12, 40), normal(1, 6, 12), normal(2, 60, 12)
    target = Bytes(0.85)
    methods = [LOW_RANK, RoundToNearest((4,))]
    found = compress(layer, weights, [few, many], target, method=methods)
    blind = compress(layer, weights, [few], target).layers[""]
    rounded = compress(layer, weights, [few], target, method=methods[1]).layers[""]
    assert blind.relative_error < 0.01 < rounded.relative_error  # as the few rows have it
    assert found.provenance["returned"] == "RoundToNearest"
    taken = found.layers[""]
    assert taken.rival == "ActivationWeighted"
    assert taken.margin is not None and taken.margin > 0


@pytest.mark.parametrize(
    ("alone", "worse"), [(LOW_RANK, Magnitude((0.1,))), (SPARSE, RoundToNearest((1,)))]
)
def test_losses_are_those_on_the_second_half(alone, worse):
    """As fitted to the first by itself; and what is returned is fitted to all."""
    weights, batches = normal(0, 12, 40), [rows(3, 30, 12), rows(5, 20, 12), rows(7, 40, 12)]
    found = compress(layer, weights, batches, Bytes(0.7), method=[alone, worse])
    taken = found.layers[""]
    assert taken.method == type(alone).__name__

    def fitted(to):
        target = Bytes(0.7) if taken.rank is None else RankRule(lambda _: taken.rank or 0)
        return compress(layer, weights, to, target, method=alone)

    half, whole = fitted(batches[:2]), fitted(batches)
    assert half.layers[""].size == whole.layers[""].size == taken.size
    outputs = batches[2] @ weights
    lost = loss(outputs, half.function(half.parameters, batches[2]))
    assert taken.loss == pytest.approx(lost, rel=1e-3)
    output_loss = found.candidates["mixture"].output_loss
    assert output_loss == pytest.approx(lost, rel=1e-3)
    results = [each.function(each.parameters, batches[2]) for each in (found, whole)]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("of_weights", "of_rows"), [(2.0**20, 1.0), (1.0, 2.0**-20)])
def test_units_do_not_matter(of_weights, of_rows):
    weights, batches = normal(0, 12, 20), [rows(3, 30, 12), rows(5, 40, 12)]
    scaled = of_weights * weights, [of_rows * batch for batch in batches]
    one, other = (
        compress(layer, *given, Bytes(0.4), method=[LOW_RANK, ROUNDED])
        for given in ((weights, batches), scaled)
    )
    assert one.layers[""].size == other.layers[""].size
    assert other.layers[""].loss == approx(one.layers[""].loss)
    assert other.layers[""].rival_loss == approx(one.layers[""].rival_loss)


def test_in_sequence_the_sizes_are_those_of_the_best():
    _, found = mixed(0.5)
    _, other = mixed(0.5, sequential=True)
    sizes = [{p: (e.size, e.method) for p, e in f.layers.items()} for f in (found, other)]
    assert sizes[0] == sizes[1]
    assert other.candidates == found.candidates


def test_what_is_known_of_the_candidates_is_kept_in_the_file(tmp_path):
    network, found = mixed(0.3)
    found.save(tmp_path / "file")
    loaded = load_compressed(tmp_path / "file", network.function, network.parameters)
    assert loaded.layers == found.layers and loaded.candidates == found.candidates
    assert repr(loaded) == repr(found)


def test_two_methods_of_one_class_are_told_apart():
    network = mlp()
    methods = [RoundToNearest((3,)), RoundToNearest((3,), group=4)]
    given = network.function, network.parameters, network.batches
    found = compress(*given, IdealBits(0.4), method=methods)
    names = {"mixture", *(" ".join(str(each).split()) for each in methods)}
    assert set(found.candidates) == names
    assert {each.method for each in found.layers.values()} <= names


@pytest.mark.slow
@pytest.mark.parametrize("target", [Bytes, IdealBits, Parameters, MultiplyAdds])
def test_every_form_of_layer_competes(target):
    network = products()
    names = ["activation weighted", "sparse gpt", "low rank and sparse", "fewer inputs"]
    if target in (Bytes, IdealBits):
        names += ["gptq", "look-up", "low rank and gptq", "rounded, one grid"]
    methods = [LADDERS[name] for name in names]
    given = network.function, network.parameters, network.batches
    found = compress(*given, target(0.5), method=methods)
    planned = [each.planned for each in found.candidates.values() if each.planned is not None]
    assert len(planned) > 2
    assert found.candidates["mixture"].planned == min(planned)
    if target is Bytes:
        assert found.storage_bytes <= 0.5 * found.dense_storage_bytes


def test_an_error_for_each_layer_is_met_by_the_fewest_bytes_of_all():
    """No choice between layers is made, so nothing is judged apart."""
    network = mlp()
    given = network.function, network.parameters, network.batches[:1]
    found = compress(*given, LayerError(0.2), method=[LOW_RANK, GPTQ()])
    assert not found.candidates
    alone = [compress(*given, LayerError(0.2), method=each) for each in (LOW_RANK, GPTQ())]
    for path, each in found.layers.items():
        assert each.relative_error <= 0.2 and each.loss is None
        assert each.bytes == min(other.layers[path].bytes for other in alone)


def test_what_is_not_finite_never_wins():
    norms = np.ones(2)
    assert Squares(np.array([1.0, np.inf]), norms).relative == np.inf
    assert Squares(np.array([1.0, 0.0]), norms).relative == 0.5
    assert Squares(np.zeros(2), np.zeros(2)).relative == 0.0


@pytest.mark.parametrize(
    ("method", "batches", "message"),
    [
        ([], 2, "`method` must be a ladder"),
        ([LOW_RANK, RoundToNearest((2,)), LOW_RANK], 2, r"holds ActivationWeighted\(\) more than"),
        ([LOW_RANK, RoundToNearest((2,))], 1, "`batches` holds one batch. Several methods"),
        ([LOW_RANK, TruncatedSVD()], 2, "`budget` is 20 of the 1,920 .* It cannot be met"),
    ],
)
def test_says_what_is_wrong(method, batches, message):
    weights = normal(0, 12, 40)
    with pytest.raises(ValueError, match=message):
        compress(layer, weights, [rows(3, 30, 12)] * batches, Bytes(0.0103), method=method)
