"""Eight virtual devices: `test_devices.py` runs this file in a process that has them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank_theory as lrt
from lowrank_theory import devices
from lowrank_theory.calibration import Calibration, TriangularCalibration
from lowrank_theory.devices import ShardedCalibration, recover_layers
from oracle import norm

INPUTS, SAMPLES, OUTPUTS, RANK = 8, 48, 6, 3
RANDOM = np.random.default_rng(0)
SPREAD = np.geomspace(1, 1e-3, INPUTS)
BATCHES = RANDOM.standard_normal((2, SAMPLES, INPUTS)) * SPREAD + RANDOM.standard_normal(INPUTS)
COMPRESSED = BATCHES + 0.1 * RANDOM.standard_normal(BATCHES.shape)
EMPTY = Calibration.empty(INPUTS)
ALONE, PAIRS = [(X,) for X in BATCHES], list(zip(BATCHES, COMPRESSED, strict=True))
KINDS = {
    "second moments": (EMPTY, ALONE),
    "compressed triangle": (TriangularCalibration.empty(INPUTS, compressed=True), PAIRS),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def mesh_of(count: int, kind: AxisType = AxisType.Explicit) -> jax.sharding.Mesh:
    return jax.make_mesh((count,), ("rows",), (kind,), devices=jax.devices()[:count])


EIGHT = mesh_of(8)


def over_rows(mesh, rows):
    with jax.enable_x64(True):
        return jax.device_put(rows, NamedSharding(mesh, PartitionSpec("rows")))


def seen(start, batches):
    for batch in batches:
        start = start.update(*batch)
    return start


def agree(one, other) -> None:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for left, right in (map(np.asarray, pair) for pair in pairs):
        assert left.dtype == right.dtype == np.float64
        assert norm(left - right) <= 1e-12 * norm(right)


def run(function, *arrays, **static):
    """What a compiled function returns, and how it communicates."""
    with jax.enable_x64(True):
        program = function.lower(*arrays, axis="rows", **static).compile()
        names = r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+)[-a-z]*\("
        return program(*arrays), re.findall(names, program.as_text())


def test_this_process_has_eight_devices_and_float32_by_default() -> None:
    assert jax.device_count() == 8
    assert jnp.ones(()).dtype == np.float32


@kinds
@pytest.mark.parametrize(("count", "exchanges"), [(8, 3), (6, 4)])
def test_combined_is_what_one_device_sees_with_the_same_bits_on_all(
    kind: str, count: int, exchanges: int
) -> None:
    start, batches = KINDS[kind]
    sharded = seen(ShardedCalibration(start, mesh_of(count), "rows"), batches)
    found = sharded.combined()
    assert type(found) is type(start)
    agree(found, seen(start, batches))

    everywhere, communication = run(devices._combined, sharded.parts, mesh=sharded.mesh)
    leaves = jax.tree.leaves(found)
    assert communication == ["collective-permute"] * exchanges * len(leaves)
    for leaf, own in zip(jax.tree.leaves(everywhere), leaves, strict=True):
        copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        assert copies == [own.tobytes()] * count


@kinds
def test_each_device_keeps_its_own_rows_and_tells_nobody(kind: str) -> None:
    start, batches = KINDS[kind]
    parts = ShardedCalibration(start, EIGHT, "rows").parts
    for batch in batches:
        on_all = [over_rows(EIGHT, rows) for rows in batch]
        parts, communication = run(devices._updated, parts, *on_all, mesh=EIGHT)
        assert communication == []
    for number in (0, 5):
        own = slice(number * SAMPLES // 8, (number + 1) * SAMPLES // 8)
        agree(
            jax.tree.map(lambda leaf, i=number: np.asarray(leaf)[i], parts),
            seen(start, [tuple(rows[own] for rows in batch) for batch in batches]),
        )


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_sharded_rows_are_taken_where_they_lie(kind: AxisType) -> None:
    mesh = mesh_of(8, kind)
    start = ShardedCalibration(EMPTY, EIGHT, "rows")
    rows = over_rows(mesh, BATCHES[0])
    agree(start.update(rows).combined(), EMPTY.update(BATCHES[0]))
    agree(ShardedCalibration(EMPTY, mesh, "rows").update(rows).combined(), EMPTY.update(BATCHES[0]))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_short_floats_are_summed_in_float64(dtype) -> None:
    rows = BATCHES[0].astype(dtype)
    for batch in (rows, jnp.asarray(rows), over_rows(EIGHT, rows)):
        found = ShardedCalibration(EMPTY, EIGHT, "rows").update(batch).combined()
        agree(found, EMPTY.update(rows.astype(np.float64)))


def test_another_axis_of_the_mesh_repeats() -> None:
    mesh = jax.make_mesh((2, 4), ("model", "rows"))
    start = ShardedCalibration(EMPTY, mesh, "rows")
    for rows in (BATCHES[0], over_rows(mesh, BATCHES[0])):
        agree(start.update(rows).combined(), EMPTY.update(BATCHES[0]))


def test_a_mesh_that_the_caller_has_set_does_not_matter() -> None:
    for mesh in (EIGHT, jax.make_mesh((2, 4), ("model", "rows"))):
        with jax.set_mesh(mesh):
            found = ShardedCalibration(EMPTY, EIGHT, "rows").update(BATCHES[0]).combined()
            layer = lrt.Observed(weights=np.eye(INPUTS), calibration=found)
            recover_layers([layer], RANK, lrt.ActivationWeighted(), EIGHT, "rows")
        agree(found, EMPTY.update(BATCHES[0]))


@kinds
def test_goes_on_from_what_was_seen_before(kind: str) -> None:
    start, (first, second) = KINDS[kind]
    before = start.update(*first)
    sharded = ShardedCalibration(before, EIGHT, "rows")
    agree(sharded.combined(), before)
    agree(sharded.update(*second).combined(), seen(start, [first, second]))


def test_layers_are_recovered_as_in_a_loop() -> None:
    layers = [
        lrt.Observed(
            weights=RANDOM.standard_normal((INPUTS, OUTPUTS)).astype(np.float32),
            bias=np.ones(OUTPUTS, np.float32),
            calibration=EMPTY.update(BATCHES[0] * (layer + 1)),
        )
        for layer in range(11)
    ]
    method = lrt.ActivationWeighted()
    recoveries = recover_layers(layers, RANK, method, EIGHT, "rows")
    for one, layer in zip(recoveries, layers, strict=True):
        alone = lrt.recover(layer, RANK, method)
        assert one.method == method
        assert one.factors.dtype == np.float32
        weights = np.asarray(alone.factors.materialise())
        assert norm(np.asarray(one.factors.materialise()) - weights) <= 1e-6 * norm(weights)
        assert norm(np.asarray(one.require().bias) - np.asarray(alone.bias)) <= 1e-6
        for found, wanted in zip(
            jax.tree.leaves(one.certificate), jax.tree.leaves(alone.certificate), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)

    stack = jax.tree.map(lambda *each: over_rows(EIGHT, np.stack(each)), *layers[:8])
    _, communication = run(devices._recovered, stack, rank=RANK, method=method, mesh=EIGHT)
    assert communication == []


def test_bad_input_is_one_clear_error() -> None:
    X, sharded = BATCHES[0], ShardedCalibration(EMPTY, EIGHT, "rows")
    layer = lrt.Observed(weights=np.eye(INPUTS), calibration=EMPTY.update(X))
    plain, method = lrt.Observed(weights=np.eye(INPUTS)), lrt.ActivationWeighted()
    infinite = np.where(np.arange(SAMPLES)[:, None] == 20, np.inf, X)
    both = ShardedCalibration(Calibration.empty(INPUTS, compressed=True), EIGHT, "rows")
    across = NamedSharding(EIGHT, PartitionSpec(None, "rows"))
    gathered = jax.tree.map(np.asarray, sharded)
    for call, message in [
        (lambda: sharded.update(X[:10]), "10 samples, which 8 devices cannot share evenly"),
        (
            lambda: ShardedCalibration(EMPTY, EIGHT, "data"),
            r"one of the mesh's \('rows',\); got 'd",
        ),
        (lambda: sharded.update(X[:, 0]), r"`activations` must have shape \(samples, inputs\)"),
        (lambda: sharded.update(X[:, :3]), "`activations` has 3 inputs, but `calibration` has 8"),
        (lambda: sharded.update(infinite), "8 non-finite entries"),
        (lambda: sharded.update(over_rows(EIGHT, infinite)), "8 non-finite entries"),
        (lambda: sharded.update(over_rows(EIGHT, X > 0)), "must be floating point"),
        (lambda: sharded.update(jax.device_put(X, across)), "`activations` must be spread over"),
        (lambda: gathered.update(X), "the calibration must be spread over the axis 'rows'"),
        (gathered.combined, "the calibration must be spread over the axis 'rows'"),
        (lambda: both.update(X), "must come with every batch or with none"),
        (lambda: both.update(X, X[:8]), "`compressed_activations` has 8 samples, but `activat"),
        (lambda: recover_layers([], 2, method, EIGHT, "rows"), "`layers` must be one `Observed`"),
        (lambda: recover_layers([layer], 2, method, EIGHT, "data"), "one of the mesh's"),
        (lambda: recover_layers([layer], 99, method, EIGHT, "rows"), "`rank` must be"),
        (
            lambda: recover_layers([layer, plain], 2, method, EIGHT, "rows"),
            "number 1 differs from number 0",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    agree(sharded.combined(), EMPTY)  # untouched by whatever was refused
