"""Laws of every method that comes in sizes, asked of each ladder in one table."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_theory as lrt
from ladders import LADDERS
from laws import comes_back
from layers import INPUTS, LAYERS, OUTPUTS, B, T, W, X
from lowrank_theory import lookup, mixtures, quantisation, recovery, sparsification
from lowrank_theory._engine.nested import packed
from lowrank_theory.approximations import AbstractMatrix
from lowrank_theory.calibration import Calibration, TriangularCalibration
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
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import (
    AbstractLadder,
    ActivationWeighted,
    EveryRank,
    Need,
    TruncatedSVD,
)
from routes import normal
from small_networks import NETWORKS, Network, mlp, run, stored

ladders = pytest.mark.parametrize("name", LADDERS)
pytestmark = pytest.mark.thinned(10)


def dense(approximation: Any) -> np.ndarray:
    wide = approximation.map_floats(lambda leaf: np.asarray(leaf).astype(np.float64))
    return np.asarray(wide.materialise())


def outputs_of(approximation: Any, rows: np.ndarray) -> np.ndarray:
    """What stands for a layer makes of these rows, by its dense matrix where it has one."""
    if isinstance(approximation, AbstractMatrix):
        return rows.astype(float) @ dense(approximation)
    wide = approximation.map_floats(lambda leaf: np.asarray(leaf).astype(np.float64))
    return np.asarray(wide.apply(rows.astype(float)))


def by_hand(observed: Observed, made: Any) -> float:
    """The error of what a recovery returns, in NumPy."""
    weights = W.astype(float)
    seen = observed.activations is not None or observed.calibration is not None
    if not seen:
        return float(np.linalg.norm(weights - dense(made.approximation)))
    inside = T if observed.compressed_activations is not None else X
    difference = X.astype(float) @ weights - outputs_of(made.approximation, inside)
    if observed.bias is not None:
        difference += B.astype(float) - np.asarray(made.bias, float)
    return float(np.linalg.norm(difference))


def test_the_table_is_complete():
    modules = recovery, quantisation, sparsification, mixtures, lookup
    public = {x for module in modules for x in vars(module).values() if inspect.isclass(x)}
    final = {x for x in public if issubclass(x, AbstractLadder) and not inspect.isabstract(x)}
    assert {type(ladder) for ladder in LADDERS.values()} == final


# --- one layer -----------------------------------------------------------------------------------


@ladders
def test_it_comes_back_from_a_pickle_and_from_its_leaves(name):
    comes_back(LADDERS[name])


@pytest.mark.parametrize("layer", LAYERS)
@ladders
def test_errors_are_those_of_what_is_returned(name, layer):
    ladder, observed = LADDERS[name], LAYERS[layer]()
    if ladder.needs and layer == "weights":
        with pytest.raises(ValueError, match=f"`{type(ladder).__name__}` needs"):
            ladder.sweep(observed)
        return
    if Need.ROWS in ladder.needs and observed.calibration is not None:
        with pytest.raises(ValueError, match="keeps no rows, which this needs"):
            ladder.sweep(observed)
        return
    if isinstance(ladder, TruncatedSVD) and layer != "weights":
        return  # its certificates speak of the weights alone
    sweep = ladder.sweep(observed)
    exact = isinstance(sweep, EveryRank)  # the errors are those of numbers that are not rounded
    norm = float(np.sqrt(np.asarray(sweep.squared_norm)))
    for size, square in enumerate(np.asarray(sweep.squared_errors)):
        made = sweep.at(size)
        error = by_hand(observed, made)
        assert np.sqrt(square) == pytest.approx(error, rel=1e-4 if exact else 1e-9, abs=1e-6 * norm)
        assert sweep.storages[size] == made.approximation.storage
        assert made.approximation.shape == (INPUTS, OUTPUTS)
        assert made.approximation.dtype == np.float32
        assert bool(made.certificate.finite)
    names = [sweep.name(size) for size in range(len(sweep.storages))]
    assert len(set(names)) == len(names) > 0
    target = W if layer == "weights" else X.astype(float) @ W
    if "affine" in layer and ladder.needs:
        assert norm <= np.linalg.norm(target - target.mean(0)) * (1 + 1e-6) or not exact
    else:
        assert norm == pytest.approx(np.linalg.norm(target), rel=1e-6)


def sweep_of(name: str, rows: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    ladder = LADDERS[name]
    activations = rows if ladder.needs else None
    sweep = ladder.sweep(Observed(weights=weights, activations=activations))
    made = [sweep.at(size).approximation for size in range(len(sweep.storages))]
    if Need.ROWS in ladder.needs:  # no matrix, but outputs
        return [outputs_of(each, rows) for each in made]
    return [dense(each) for each in made]


@pytest.mark.parametrize(("of_rows", "of_weights"), [(20, 0), (0, 20), (-300, 300), (300, -300)])
@ladders
def test_units_do_not_matter(name, of_rows, of_weights):
    rows, weights = X.astype(float), W.astype(float)
    once = sweep_of(name, rows, weights)
    again = sweep_of(name, np.ldexp(rows, of_rows), np.ldexp(weights, of_weights))
    power = of_weights + of_rows * (Need.ROWS in LADDERS[name].needs)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_allclose(np.ldexp(other, -power), one, rtol=1e-9, atol=1e-9)


HOSTILE = {
    "zero weights": (X, 0 * W),
    "zero rows": (0 * X, W),
    "one row": (X[:1], W),
    "a dead input": (X * (np.arange(INPUTS) > 0).astype(np.float32), W),
    "constant columns": (np.ones_like(X), W),
    "fewer rows than inputs": (X[:5], W),
    "a massive input": (X * np.float32(10.0) ** (9 * (np.arange(INPUTS) == 3)), W),
    "equal entries": (X, np.ones_like(W)),
    "one output": (X, W[:, :1]),
    "one of each": (X[:1, :1], W[:1, :1]),
}


@pytest.mark.parametrize("where", HOSTILE)
@ladders
def test_hostile_layers_are_approximated_by_finite_numbers(name, where):
    rows, weights = HOSTILE[where]
    size = float(np.abs(weights).max())
    for matrix in sweep_of(name, rows, weights):
        assert np.isfinite(matrix).all()
        if where == "zero weights":
            assert not matrix.any()
        if not LADDERS[name].needs and name != "rounded, groups of outputs, with zeros":
            assert np.abs(matrix).max() <= 2 * size


@ladders
def test_outputs_alone_are_refused(name):
    observed = Observed(activations=X, outputs=X @ W)
    if name == "activation weighted":
        assert LADDERS[name].sweep(observed).storages
        return
    with pytest.raises(ValueError, match=r"give `Observed\(weights=...\)`"):
        LADDERS[name].sweep(observed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoundToNearest(()), "`bits` is empty"),
        (lambda: RoundToNearest((9,)), "`bits` must be an integer from 1 to 8; got 9"),
        (lambda: RoundToNearest(group=0), "`group` must be an integer >= 1; got 0"),
        (lambda: RoundToNearest(axis=2), "`axis` must be an integer from 0 to 1; got 2"),
        (lambda: sparsification.Magnitude(()), "`shares` is empty"),
        (lambda: sparsification.Magnitude((1.0,)), "`shares` must lie strictly between 0 and 1"),
        (lambda: sparsification.GroupedMagnitude(()), "`patterns` is empty"),
        (lambda: sparsification.GroupedMagnitude(((4, 4),)), "integer from 1 to 3; got 4"),
        (lambda: mixtures.LowRankAndSparse((0.0,)), "`shares` must lie strictly"),
        (lambda: mixtures.LowRankAndSparse(steps=0), "`steps` must be an integer >= 1"),
        (lambda: quantisation.round_to_nearest(W * np.nan, 4), "`weights` has 96 non-finite"),
        (lambda: quantisation.round_to_nearest(W[0], 4), "`weights` must have shape"),
        (lambda: sparsification.largest_entries(W, 97), "`kept` must be an integer from 1 to 96"),
        (lambda: mixtures.low_rank_and_sparse(W, X.T @ X, 9, 5), "`rank` must be an integer from"),
        (lambda: mixtures.low_rank_and_sparse(W, X, 2, 5), r"`gram` must be \(12, 12\)"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- a network -----------------------------------------------------------------------------------


@functools.cache
def compressed(name: str, network: str = "products", sequential: bool = False):
    built = NETWORKS[network]()
    given = built.function, built.parameters, built.batches
    return built, compress(*given, Bytes(0.7), method=LADDERS[name], sequential=sequential)


@ladders
def test_a_network_keeps_the_budget_by_its_arrays(name):
    _, found = compressed(name)
    arrays = [leaf for leaves in stored(found).values() for leaf in leaves]
    assert found.storage_bytes == sum(leaf.nbytes for leaf in arrays)
    assert found.storage_bytes <= 0.7 * found.dense_storage_bytes
    assert any(layer.size for layer in found.layers.values())
    assert found.provenance["lower_bound"] <= found.provenance["planned"]


@ladders
def test_the_stated_errors_are_those_of_the_network(name):
    network, found = compressed(name)
    looks = bool(LADDERS[name].needs)
    original, other = run(network), run(network, found)
    for key, outputs in original.items():
        layer = found.layers[f"['{key}']"]
        if layer.size is None:
            continue
        assert layer.method == type(LADDERS[name]).__name__
        if not looks:
            matrix = layer.view.matrix(np.asarray(network.parameters[key], float))
            made = dense(found.parameters[key])
            pair = matrix, made
        else:
            pair = outputs, other[key]
        error = np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[0])
        half = key == "half"
        assert layer.relative_error == pytest.approx(error, rel=0.02 if half else 1e-4)
        assert layer.size in repr(found)


@ladders
def test_what_is_saved_is_loaded(name, tmp_path):
    network, found = compressed(name)
    found.save(tmp_path / "file")
    loaded = load_compressed(tmp_path / "file", network.function, network.parameters)
    assert loaded.layers == found.layers
    content = (tmp_path / "file").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    cut_by = {} if found.nested is None else packed(found.nested)[1]  # by what `at` is made
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves((found.parameters, cut_by))]
    assert len(content) - header == sum(leaf.nbytes for leaf in kept)
    pairs = zip(*map(jax.tree.leaves, (loaded.parameters, found.parameters)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", [n for n, ladder in LADDERS.items() if ladder.needs])
def test_in_sequence_the_last_error_is_that_of_the_network(name):
    network, found = compressed(name, "mlp", sequential=True)
    bias = network.parameters[-1]["b"]
    outputs, other = run(network) - bias, run(network, found) - bias
    last = list(found.layers.values())[-1]
    error = np.linalg.norm(outputs - other) / np.linalg.norm(outputs)
    assert last.size is not None
    assert last.relative_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", [n for n, ladder in LADDERS.items() if not ladder.needs])
def test_without_a_look_at_the_data_there_is_no_sequence(name):
    with pytest.raises(ValueError, match=r"does not look at the data: leave `sequential` out"):
        compressed(name, sequential=True)


# --- several ladders -----------------------------------------------------------------------------

SEVERAL = [TruncatedSVD(), ActivationWeighted(), LADDERS["rounded"], LADDERS["low rank and sparse"]]


def to(share: float, method: Any, **options: Any):
    network = mlp()
    given = network.function, network.parameters, network.batches
    return network, compress(*given, Bytes(share), method=method, **options)


@pytest.mark.parametrize("sequential", [False, True])
def test_of_several_ladders_each_layer_gets_the_best(sequential):
    network, mixed = to(0.4, SEVERAL, sequential=sequential)
    planned = [each.planned for each in mixed.candidates.values() if each.planned is not None]
    assert len(planned) > 2 and mixed.candidates["mixture"].planned == min(planned)
    assert mixed.storage_bytes <= 0.4 * mixed.dense_storage_bytes
    last, bias = list(mixed.layers.values())[-1], network.parameters[-1]["b"]
    if sequential and last.size is not None:
        outputs, other = run(network) - bias, run(network, mixed) - bias
        error = np.linalg.norm(outputs - other) / np.linalg.norm(outputs)
        assert last.relative_error == pytest.approx(error, rel=1e-3)
    assert mixed.provenance["method"].count("(") >= len(SEVERAL)


def test_beside_a_ladder_that_looks_all_losses_are_those_of_outputs():
    """Weights that no row meets cost the truncated weights nothing, once outputs are judged."""
    rows = np.vstack([X, -X]).astype(np.float32)
    rows[:, 6:] = 0
    weights = W.copy()
    weights[6:] *= 100

    def layer(w, x):
        return x @ w

    alone, beside = (
        compress(layer, weights, [rows, rows], Bytes(0.9), method=method)
        for method in (Magnitude3, [Magnitude3, LADDERS["low rank and sparse"]])
    )
    assert alone.layers[""].relative_error < 0.9
    taken = beside.layers[""]
    assert taken.method == "LowRankAndSparse" and taken.relative_error < 0.5


Magnitude3 = sparsification.Magnitude((0.3,))


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "method", "message"),
    [
        (Parameters(0.5), LADDERS["rounded"], "`Parameters` counts numbers, .* `Bytes` or `Ideal"),
        (MultiplyAdds(0.5), SEVERAL, "`MultiplyAdds` counts multiplications, of which `Round"),
        (RankRule(lambda _: 2), LADDERS["rounded"], "`RankRule` finds ranks"),
        (RankRule(lambda _: 2), SEVERAL, "`RankRule` finds ranks"),
        (Bytes(0.5), [], "`method` must be a ladder"),
    ],
)
def test_a_target_that_a_ladder_cannot_serve_is_refused(target, method, message):
    network = mlp()
    with pytest.raises(ValueError, match=message):
        compress(network.function, network.parameters, network.batches, target, method=method)


@pytest.mark.slow
def test_an_error_is_met_with_the_fewest_bytes():
    network = mlp()
    given = network.function, network.parameters, network.batches
    methods = [RoundToNearest(group=4), ActivationWeighted()]
    found = compress(*given, LayerError(0.1), method=methods)
    singles = [compress(*given, LayerError(0.1), method=[m, methods[1]]) for m in methods]
    for path, layer in found.layers.items():
        assert layer.size is not None and layer.relative_error <= 0.1
        assert layer.bytes <= min(each.layers[path].bytes for each in singles)
    tight = compress(*given, LayerError(1e-6), method=RoundToNearest((2, 3)))
    assert all(layer.size is None for layer in tight.layers.values())
    assert all("with 3 bits it errs by" in layer.remark for layer in tight.layers.values())


def test_ideal_bits_do_not_count_what_pads():
    """Three bits for each of 15 entries are 45 bits; in bytes they take six."""
    weights = normal(9, 3, 5)
    found = compress(
        lambda w, x: x @ w, weights, [X[:, :3]], IdealBits(0.9), method=RoundToNearest((3,))
    )
    assert found.layers[""].bytes == 6 + 5 * 4


def test_a_triangle_resolves_what_moments_do_not():
    rows = X * np.logspace(0, -8, INPUTS, dtype=np.float32)
    weights = np.diag(np.logspace(0, 8, INPUTS)).astype(np.float32)
    kinds = Calibration, TriangularCalibration
    squared, resolved = (
        compress(lambda w, x: x @ w, weights, [rows], RankRule(lambda _: 3), calibration=kind)
        for kind in kinds
    )
    assert not squared.layers[""].certified and resolved.layers[""].certified
    outputs, other = (
        rows.astype(float) @ weights,
        run(Network(lambda w, x: x @ w, weights, [rows]), resolved),
    )
    error = np.linalg.norm(outputs - other) / np.linalg.norm(outputs)
    best = np.linalg.svd(outputs - outputs.mean(0), compute_uv=False)[3:]
    assert resolved.layers[""].relative_error == pytest.approx(error, rel=1e-3)
    assert error == pytest.approx(np.linalg.norm(best) / np.linalg.norm(outputs), rel=1e-3)


def test_a_rounded_network_runs_under_transformations(full_precision):
    network, found = compressed("rounded", "mlp")
    batch = network.batches[0]
    outputs = found.function(found.parameters, batch)
    for other in (
        jax.jit(found.function)(found.parameters, batch),
        jax.vmap(lambda row: found.function(found.parameters, row[None])[0])(jnp.asarray(batch)),
    ):
        np.testing.assert_allclose(other, outputs, rtol=1e-4, atol=1e-5)
    assert lrt.networks.survey(found.function, found.parameters, batch) is not None
