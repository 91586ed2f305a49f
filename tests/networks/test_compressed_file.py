"""What is saved of a compressed network is loaded, bit for bit, and nothing else is."""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save

from kinds import KINDS
from lowrank_theory._engine import compressed_file as _compressed_file
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory.approximations import Affine, Quantised
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks import (
    Compressed,
    Parameters,
    compress,
    load_compressed,
    observe,
    replace,
)
from routes import MODELS, factors_of, layer_of, normal

pytestmark = pytest.mark.thinned(4)


def by_hand(function, parameters, batch) -> Compressed:
    """Random factors for all weights but the last, with and without a shift."""
    views = observe(function, parameters, [batch]).views
    factors, layers = {}, {}
    for k, (path, view) in enumerate(views.items()):
        last = k == len(views) - 1
        size = leaves_by_path(parameters)[path].dtype.itemsize
        layers[path] = dataclasses.replace(
            layer_of(view, None, "»left dense«") if last else layer_of(view, 2),
            relative_error=0.1 + k / 3,
            certified=k != 1,
            parameters=10 + k,
            bytes=size * (10 + k),
            dense_bytes=size * 40,
        )
        if last:
            continue
        factors[path] = given = factors_of(view, k)
        if k % 2 == 0:
            shift = normal(k, *given.shape[:-2], given.shape[-1])
            factors[path] = Affine(given, shift)
    run, smaller = replace(function, parameters, factors)
    return Compressed(run, smaller, layers, {"method": "by hand", "numbers": [1, 0.1, None]})


def mixed():
    """Leaves of every kind."""

    def function(p, x):
        x = p["activation"](p["scale"] * x @ p["bfloat16"].astype(jnp.float32))
        x = x + jax.random.normal(p["key"], x.shape) * p["count"]
        x = x.astype(jnp.float16) @ p["float16"]
        return {"out": x @ p["turned"] + p["double"], "flag": p["flag"], "empty": p["empty"]}

    parameters = {
        "bfloat16": jnp.asarray(normal(0, 6, 8), jnp.bfloat16),
        "float16": jnp.asarray(normal(1, 8, 5), jnp.float16),
        "turned": normal(2, 4, 5).T,  # not in the order of its axes
        "double": normal(3, 4).astype(np.float64) + 1e-12,
        "count": np.int32(3),
        "flag": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(1),
        "scale": 0.5,
        "activation": jnp.tanh,
    }
    return function, parameters, normal(4, 7, 6)


def of_nnx():
    layers = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1))
    network = nnx.Sequential(layers[0], nnx.Dropout(0.5, rngs=nnx.Rngs(2)), layers[1])
    definition, state = nnx.split(network)
    return lambda state, x: nnx.merge(definition, state)(x), state, normal(1, 7, 6)


def of_equinox():
    network = eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0))
    return lambda network, x: jax.vmap(network)(x), network, normal(1, 7, 6)


def of_models(name):
    model = MODELS[name]()
    return model.function, model.parameters, model.batch


NETWORKS = {
    "mixed": mixed,
    "nnx": of_nnx,
    "equinox": of_equinox,
    "convolutions": lambda: of_models("convolutions"),
    "stacked layers": lambda: of_models("stacked layers"),
}


def same(actual, desired):
    """The same kinds of leaves, and the same bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        if not hasattr(b, "dtype"):
            assert a is b
            continue
        assert (a.dtype, isinstance(a, jax.Array)) == (b.dtype, isinstance(b, jax.Array))
        assert a.shape == b.shape
        assert bits(a) == bits(b)


def bits(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_is_loaded(name, tmp_path):
    function, parameters, batch = NETWORKS[name]()
    compressed = by_hand(function, parameters, batch)
    compressed.save(tmp_path / "first")
    loaded = load_compressed(tmp_path / "first", function, parameters)
    same(loaded.parameters, compressed.parameters)
    assert list(loaded.layers) == list(compressed.layers)
    assert loaded.layers == compressed.layers
    assert loaded.provenance == compressed.provenance

    def outputs(network):
        return jax.jit(lambda batch: network.function(network.parameters, batch))(batch)

    same(outputs(loaded), outputs(compressed))
    loaded.save(str(tmp_path / "second"))
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_shapes_and_dtypes_of_the_network_are_enough(tmp_path):
    function, parameters, batch = of_equinox()
    compressed = by_hand(function, parameters, batch)
    compressed.save(tmp_path / "file")
    shapes = eqx.filter_eval_shape(lambda: parameters)
    same(load_compressed(tmp_path / "file", function, shapes).parameters, compressed.parameters)


def small(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]


SMALL, BATCH = {"a": normal(0, 6, 5), "b": normal(1, 5, 4), "c": normal(2, 4)}, normal(3, 40, 6)


def test_a_network_that_was_compressed(tmp_path):
    compressed = compress(small, SMALL, [BATCH], Parameters(0.8))
    compressed.save(tmp_path / "file")
    loaded = load_compressed(tmp_path / "file", small, SMALL)
    assert loaded.layers == compressed.layers
    assert loaded.provenance == compressed.provenance
    same(
        loaded.function(loaded.parameters, BATCH), compressed.function(compressed.parameters, BATCH)
    )
    assert repr(loaded) == repr(compressed)


def test_a_file_of_the_first_version_is_loaded():
    """It was written when factors and shifts were all that there was."""
    function, parameters, batch = mixed()
    expected = by_hand(function, parameters, batch)
    path = Path(__file__).parent / "compressed_version_1.safetensors"
    loaded = load_compressed(path, function, parameters)
    same(loaded.parameters, expected.parameters)
    assert loaded.layers == expected.layers
    assert loaded.provenance == expected.provenance


STACKED = {"w": normal(0, 2, 6, 5)}


def stacked(p, x):
    return jnp.einsum("si,kio->kso", x, p["w"])


def saved(given, folder):
    """The file of a network of two weights, for which this stands."""
    view = observe(stacked, STACKED, [BATCH]).views["['w']"]
    run, smaller = replace(stacked, STACKED, {"['w']": given})
    Compressed(run, smaller, {"['w']": layer_of(view, 2)}, {}).save(folder / "file")
    return folder / "file"


def leaves_of(given):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(given)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_bit_for_bit(kind, tmp_path):
    """And the file is as large as its storage says, beside the header."""
    given = jax.tree.map(jnp.asarray, KINDS[kind](np.random.default_rng(0), (2,), 6, 5))
    file = saved(given, tmp_path)
    same(load_compressed(file, stacked, STACKED).parameters["w"], given)
    content = file.read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == given.storage.bytes


def test_what_was_trained_is_loaded(tmp_path):
    compressed = by_hand(small, SMALL, BATCH)
    trained = jax.tree.map(lambda leaf: leaf / 3, compressed.parameters)
    dataclasses.replace(compressed, parameters=trained).save(tmp_path / "file")
    same(load_compressed(tmp_path / "file", small, SMALL).parameters["a"], trained["a"])


def test_any_reader_of_safetensors_finds_the_arrays(tmp_path):
    compressed = by_hand(small, SMALL, BATCH)
    compressed.save(tmp_path / "file")
    arrays = load_file(tmp_path / "file")
    names = {
        "['a'].approximation.left",
        "['a'].approximation.right",
        "['a'].shift",
        "['b']",
        "['c']",
    }
    assert set(arrays) == names
    np.testing.assert_array_equal(arrays["['a'].shift"], compressed.parameters["a"].shift)


def test_a_dtype_that_no_file_has(tmp_path):
    compressed = by_hand(small, {**SMALL, "z": np.zeros(3, complex)}, BATCH)
    with pytest.raises(ValueError, match=r"leaf that cannot be saved: .*complex128"):
        compressed.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    compressed = by_hand(small, SMALL, BATCH)
    compressed.save(tmp_path / "file")
    before = (tmp_path / "file").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        compressed.save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- files that are refused ----------------------------------------------------------------------


def test_no_flipped_bit_and_no_cut_passes(tmp_path):
    file = tmp_path / "file"
    by_hand(small, SMALL, BATCH).save(file)
    content = file.read_bytes()
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"Give another file, or compress|has version .* Update"
        ):
            load_compressed(file, small, SMALL)
    for length in (*range(0, len(content), 97), len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            load_compressed(file, small, SMALL)


def test_numbers_that_are_exchanged_are_found(tmp_path):
    file = tmp_path / "file"
    by_hand(small, SMALL, BATCH).save(file)
    content = file.read_bytes()
    file.write_bytes(content.replace(b'\\"relative_error\\": 0.1', b'\\"relative_error\\": 0.0'))
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is not the one that it states"):
        load_compressed(file, small, SMALL)


def of_calibration(tmp_path):
    Calibration.empty(4).save(tmp_path / "calibration")
    return (tmp_path / "calibration").read_bytes()


FOREIGN = {
    "empty": lambda _: b"",
    "text": lambda _: b"no network at all",
    "arrays of somebody else": lambda _: save({"a": np.zeros(2)}),
    "header of somebody else": lambda _: save({}, {"compressed": "[1]"}),
    "a calibration": of_calibration,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_refused(name, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(FOREIGN[name](tmp_path))
    why = "truncated or no safetensors" if name in ("empty", "text") else "something else than a c"
    with pytest.raises(ValueError, match=f"{why}.*Give another file") as raised:
        load_compressed(file, small, SMALL)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("header", ["{}", '{"a": []}', "[" * 100_000, "null"])
def test_headers_of_somebody_else_are_refused(header, tmp_path):
    content = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="Give another file, or compress again"):
        load_compressed(tmp_path / "file", small, SMALL)


@pytest.mark.parametrize(
    "entries",
    [{}, {"layers": {"['a']": {}}}, {"layers": [], "dtypes": {}}, {"dtypes": {"x": "float99"}}],
)
def test_a_whole_file_with_gaps_is_refused(entries, tmp_path):
    whole = {"network": {}, "keys": {}, "provenance": {}} | entries
    arrays = {"x": np.zeros(2)}
    (tmp_path / "file").write_bytes(_compressed_file._FILE.pack(arrays, **whole))
    with pytest.raises(ValueError, match=r"is damaged .*Give another file, or compress again"):
        load_compressed(tmp_path / "file", small, SMALL)


def in_order(random, stack, inputs, outputs):
    """Rounded weights, the inputs sorted."""
    codes = random.integers(0, 16, (*stack, inputs, outputs))
    order = np.broadcast_to(np.arange(inputs)[::-1], (*stack, inputs))
    scales = np.ones((*stack, 1, 1), np.float32)
    return Quantised.of(codes, scales, order=order, bits=4, axis=None)


@pytest.mark.parametrize("place", ["columns", "starts", "splits", "order"])
def test_a_sealed_file_with_places_that_there_are_not_is_refused(place, tmp_path):
    kinds = KINDS | {"in order": in_order}
    made = {name: kind(np.random.default_rng(0), (2,), 6, 5) for name, kind in kinds.items()}
    of_kind = {name: each for name, each in made.items() if f".{place}" in str(leaves_of(each))}
    assert of_kind
    for given in of_kind.values():
        file = saved(jax.tree.map(jnp.asarray, given), tmp_path)
        arrays = load_file(file)
        with safe_open(file, "np") as opened:
            what = json.loads(opened.metadata()["compressed"])
        (name,) = (each for each in arrays if each.endswith(f".{place}"))
        forged = arrays[name].copy()
        forged.flat[-1] = 100
        kept = {key: what[key] for key in what.keys() - {"format", "version"}}
        file.write_bytes(_compressed_file._FILE.pack(arrays | {name: forged}, **kept))
        with pytest.raises(ValueError, match=f"is damaged .*`{place}` must"):
            load_compressed(file, stacked, STACKED)


def test_no_file_and_a_newer_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent' of a compressed network"):
        load_compressed(tmp_path / "absent", small, SMALL)
    newer = {"format": "lowrank_theory.compressed", "version": 3}
    (tmp_path / "newer").write_bytes(save({}, {"compressed": json.dumps(newer)}))
    message = r"has version 3; this library reads versions 1 to 2\. Update"
    with pytest.raises(ValueError, match=message):
        load_compressed(tmp_path / "newer", small, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": normal(0, 6, 6)}, r"\['a'\] is float32\[6, 5\] there, and float32\[6, 6\] here"),
        ({"b": SMALL["b"].astype(np.float16)}, r"\['b'\] is float32\[5, 4\] there, and float16"),
        ({"a": 1.0}, r"\['a'\] is float32\[6, 5\] there, and 1.0 here"),
        ({"d": normal(0, 4)}, r"\['d'\] is nothing there, and float32\[4\] here"),
        ({"rate": 0.5}, r"\['rate'\] is 0.25 there, and 0.5 here. Give the network that was"),
        ({"d": 1, "e": 1, "f": 1, "g": 1}, "; and 1 more. Give"),
    ],
)
def test_another_network_is_refused(changes, message, tmp_path):
    parameters = {**SMALL, "rate": 0.25}
    by_hand(small, parameters, BATCH).save(tmp_path / "file")
    with pytest.raises(ValueError, match=f"other leaves than `parameters`: .*{message}"):
        load_compressed(tmp_path / "file", small, {**parameters, **changes})
    del parameters["c"]
    with pytest.raises(ValueError, match=r"\['c'\] is float32\[4\] there, and nothing here"):
        load_compressed(tmp_path / "file", small, parameters)
