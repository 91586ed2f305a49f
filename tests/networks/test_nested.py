"""One compressed network gives every smaller one: as it was compressed, saved, and cut again."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lowrank_theory._engine import compressed_file as _compressed_file
from lowrank_theory.networks import (
    Bytes,
    Compressed,
    IdealBits,
    LayerError,
    MultiplyAdds,
    Parameters,
    compress,
    load_compressed,
)
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD
from routes import normal
from small_networks import NETWORKS, run
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

METHODS = {"data-driven": ActivationWeighted(), "data-agnostic": TruncatedSVD()}
BUDGETS = (Bytes, Parameters, IdealBits, MultiplyAdds)
LARGEST, SHARES = 0.7, (0.55, 0.4, 0.3)


@functools.cache
def compressed_to(name, method, budget, share, **options) -> Compressed:
    network = NETWORKS[name]()
    arguments = network.function, network.parameters, network.batches, budget(share)
    return compress(*arguments, method=METHODS[method], **options)


def ranks_of(compressed):
    return [layer.rank for layer in compressed.layers.values()]


def same(one: Compressed, other: Compressed):
    """The same numbers and the same words."""
    assert one.layers == other.layers
    assert jax.tree.structure(one.parameters) == jax.tree.structure(other.parameters)
    for mine, theirs in zip(*map(jax.tree.leaves, (one.parameters, other.parameters)), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def holds(larger, smaller):
    """Whether no rank is larger in the smaller network, and the same layers are dense."""
    pairs = list(zip(ranks_of(larger), ranks_of(smaller), strict=True))
    return all((a is None) == (b is None) and (a or 0) >= (b or 0) for a, b in pairs)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_is_what_compression_gives(name, method, budget):
    """Bit for bit, where the ranks are held."""
    largest = compressed_to(name, method, budget, LARGEST, every_size=True)
    held = 0
    for share in SHARES if budget is Bytes else SHARES[1:2]:
        cut = largest.at(share)
        anew = compressed_to(name, method, budget, share, every_size=True)
        if holds(largest, anew):
            held += 1
            same(cut, anew)
        check(cut, anew)
        assert cut.provenance["target"] == str(budget(share))
        assert cut.provenance["cut_from"] == str(budget(LARGEST))
        if budget is Bytes:
            assert cut.storage_bytes <= share * cut.dense_storage_bytes
    assert held


def check(cut, anew):
    """The best of fewer choices; sums are in another order."""
    planned = cut.provenance["planned"]
    assert planned >= anew.provenance["planned"] * (1 - 1e-12)
    assert (planned == approx(anew.provenance["planned"])) == (ranks_of(cut) == ranks_of(anew))
    assert planned == approx(sum(layer.relative_error**2 for layer in cut.layers.values()))
    assert cut.provenance["lower_bound"] <= planned


def test_what_is_dense_stays_dense():
    """The same law, where the smaller network leaves the same layers dense."""
    largest = compressed_to("mlp", "data-driven", Bytes, 0.6)
    held = 0
    for share in (0.55, 0.5, 0.45):
        cut, anew = largest.at(share), compressed_to("mlp", "data-driven", Bytes, share)
        pairs = zip(ranks_of(largest), ranks_of(cut), strict=True)
        assert all((one is None) == (other is None) for one, other in pairs)
        if holds(largest, anew):
            held += 1
            same(cut, anew)
        check(cut, anew)
    assert held


@pytest.mark.parametrize("name", NETWORKS)
def test_cuts_of_cuts_and_files_are_the_same(name, tmp_path):
    network, largest = (
        NETWORKS[name](),
        compressed_to(name, "data-driven", Bytes, LARGEST, every_size=True),
    )
    same(largest.at(LARGEST), largest)
    largest.save(tmp_path / "file")
    loaded = load_compressed(tmp_path / "file", network.function, network.parameters)
    largest.at(0.5).save(tmp_path / "smaller")
    smaller = load_compressed(tmp_path / "smaller", network.function, network.parameters)
    for share in (0.45, 0.35):
        cut = largest.at(share)
        same(loaded.at(share), cut)
        if holds(largest.at(0.5), cut):
            same(smaller.at(share), cut)
            same(largest.at(0.5).at(share), cut)
        outputs = [jax.tree.leaves(run(network, each)) for each in (cut, loaded.at(share))]
        for one, other in zip(*outputs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert (tmp_path / "smaller").stat().st_size < (tmp_path / "file").stat().st_size


def test_a_sequence_is_cut_within_the_share():
    largest = compressed_to("mlp", "data-driven", Bytes, LARGEST, sequential=True)
    for share in (0.5, 0.4):
        cut = largest.at(share)
        assert 0.8 * share < cut.storage_bytes / cut.dense_storage_bytes <= share
        losses = [layer.relative_error for layer in cut.layers.values()]
        assert all(map(np.less_equal, [x.relative_error for x in largest.layers.values()], losses))


def tied(p, x):
    return jnp.tanh(x @ p["first"]) @ p["last"] + jnp.tanh(x @ p["again"]) @ p["last"]


def test_leaves_that_are_one_array_stay_one(tmp_path):
    shared = jnp.asarray(normal(0, 12, 10))
    parameters = {"first": shared, "again": shared, "last": jnp.asarray(normal(1, 10, 9))}
    batches = [normal(2, 50, 12)]
    largest = compress(tied, parameters, batches, Bytes(0.8), every_size=True)
    largest.save(tmp_path / "file")
    for each in (largest, load_compressed(tmp_path / "file", tied, parameters)):
        cut = each.at(0.5)
        assert cut.parameters["first"] is cut.parameters["again"]
        same(cut, compress(tied, parameters, batches, Bytes(0.5), every_size=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_stays_dense_that_a_rank_makes_cheaper(name):
    """At almost all of the bytes each rank is the largest that saves anything."""
    network = NETWORKS[name]()
    full = compressed_to(name, "data-agnostic", Bytes, 0.999, every_size=True)
    for layer in full.layers.values():
        *_, inputs, outputs = layer.view.matrix_shape
        assert layer.rank == (inputs * outputs - 1) // (inputs + outputs)
    with pytest.raises(ValueError, match=r"cannot be met: .* a share of 0\.\d"):
        compress(network.function, network.parameters, network.batches, Bytes(0.01),
                 every_size=True)  # fmt: skip


def test_every_size_is_for_nested_ranks_under_a_budget():
    network = NETWORKS["mlp"]()
    arguments = network.function, network.parameters, network.batches
    methods = [TruncatedSVD(), ActivationWeighted()]
    for target, method in ((LayerError(0.5), methods[0]), (Bytes(0.5), methods)):
        with pytest.raises(ValueError, match=r"`every_size` is for a budget, such as"):
            compress(*arguments, target, method=method, every_size=True)


def not_nested():
    network = NETWORKS["mlp"]()
    arguments = network.function, network.parameters, network.batches
    rounded = RoundToNearest(bits=(2, 4))
    yield compress(*arguments, Bytes(0.5), method=rounded), "made by RoundToNearest"
    yield compress(*arguments, Bytes(0.5), method=[rounded, TruncatedSVD()]), "TruncatedSVD"
    yield compress(*arguments, LayerError(0.5)), r"for LayerError\(relative=0.5\)"
    yield Compressed(network.function, network.parameters, {}, {}), "made by hand for no target"


def test_what_is_not_nested_is_not_cut():
    for compressed, message in not_nested():
        with pytest.raises(ValueError, match=f"{message}.*Compress to a budget"):
            compressed.at(0.25)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.71, r"`share` is 0.71, and the network is kept at 0.7: compress it to the largest"),
        (1e-3, r"`share` is 0.001, which cannot be met: .* a share of 0\.\d+\. Compressed with"),
        (1.0, r"`share` must lie strictly between 0 and 1; got 1"),
        (float("nan"), r"`share` must"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(share, message):
    with pytest.raises(ValueError, match=message):
        compressed_to("mlp", "data-driven", Bytes, LARGEST).at(share)


def test_a_file_whose_ranks_do_not_fit_is_refused(tmp_path):
    network, file = NETWORKS["mlp"](), tmp_path / "file"
    compressed_to("mlp", "data-driven", Bytes, LARGEST).save(file)
    arrays = load_file(file)
    with safe_open(file, "np") as opened:
        what = json.loads(opened.metadata()["compressed"])
    name = next(each for each in arrays if each.endswith("every rank: costs"))
    kept = {key: what[key] for key in what.keys() - {"format", "version"}}
    file.write_bytes(_compressed_file._FILE.pack(arrays | {name: arrays[name][1:]}, **kept))
    with pytest.raises(ValueError, match=r"is damaged .* costs for .* losses"):
        load_compressed(file, network.function, network.parameters)
