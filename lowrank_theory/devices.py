r"""Calibration and recovery on several devices and hosts, over a mesh of JAX.

Statistics are parallel in the rows, recoveries in the layers. Every device keeps the statistics of
its own rows, and nothing travels until they are asked for: then the parts are merged in $\log_2 P$
exchanges among $P$ devices. Each pairs the devices whose numbers differ in one bit, and both of a
pair merge in the order of that bit, so that all devices end with the same bits (the all-reduction
of Demmel, Grigori, Hoemmen and Langou 2012 for triangular factors; here for whatever can be
merged). A recovery needs nothing of another layer: there no device talks to another at all.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._float64_range import STATISTICS_WITH_BATCH, check_range
from lowrank_theory._numerics import AnyArray, check_array, check_same, float64
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractMethod, Recovery, recover

Tree = TypeVar("Tree")


class ShardedCalibration(eqx.Module):
    """A calibration whose rows come to many devices, each of which keeps the statistics of its own.

    ```python
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    sharded = ShardedCalibration(Calibration.empty(inputs=64), mesh, "rows")
    for batch in batches:
        sharded = sharded.update(batch)
    calibration = sharded.combined()
    ```

    It starts from a calibration of any kind, empty or with what it has seen before, and ends with
    one of the same kind. `update` moves nothing between devices; `combined` is the one reduction.
    Both compile themselves and stay outside `jit`. Over several hosts
    (`jax.distributed.initialize`), every process makes the same calls, each with its own rows.

    - `parts`: the statistics of each device, along a leading axis;
    - `mesh`, `axis`: the devices, and the axis of the mesh that the rows are spread over. Along any
      other axis, devices repeat each other.

    Raises `ValueError` for what is no calibration or no mesh, and for an axis that the mesh does
    not have.
    """

    parts: AbstractCalibration
    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True)

    def __init__(self, calibration: AbstractCalibration, mesh: Mesh, axis: str) -> None:
        if not isinstance(calibration, AbstractCalibration):
            raise ValueError(
                "`calibration` must be a calibration such as `Calibration.empty(inputs)`; got "
                f"{type(calibration).__name__}."
            )
        sharding = _spread_over(mesh, axis)

        def on_the_first(leaf: AnyArray) -> Array:
            start = np.array(leaf)[None]  # nobody else writes to it

            def part(index: Any) -> np.ndarray:  # zeros have seen nothing
                return start if index[0].start in (None, 0) else np.zeros_like(start)

            shape = (mesh.shape[axis], *start.shape[1:])
            return jax.make_array_from_callback(shape, sharding, part)

        with float64():
            self.parts = jax.tree.map(on_the_first, calibration)
        self.mesh, self.axis = mesh, axis

    def update(
        self, activations: ArrayLike, compressed_activations: ArrayLike | None = None
    ) -> "ShardedCalibration":
        """The statistics after one more batch of shape (samples, inputs).

        A JAX array on several devices is the batch of all processes, and must lie on the mesh with
        its rows over `axis`. Anything else holds the rows of this process, as many as every other
        process gives, and is cut over its devices.

        The batch has been read when this returns: its memory may be filled again, or donated.

        Raises `ValueError` for what the calibration itself refuses, for rows that the devices
        cannot share evenly, and for arrays that lie otherwise. Every process refuses what its own
        devices saw.
        """
        self._check_spread("the calibration", *jax.tree.leaves(self.parts))
        with _float64_on(self.mesh):
            batch = [self._spread("activations", activations)]
            if compressed_activations is not None:
                batch.append(self._spread("compressed_activations", compressed_activations))
                samples = batch[1].shape[0], "activations", batch[0].shape[0], "samples"
                check_same("compressed_activations", *samples)
            parts = _updated(self.parts, *batch, mesh=self.mesh, axis=self.axis)
        parts = check_range(
            STATISTICS_WITH_BATCH, parts
        )  # moves nothing: each process looks at its own
        return eqx.tree_at(lambda this: this.parts, self, parts)

    def combined(self) -> AbstractCalibration:
        """The calibration of all rows that all devices have seen, at hand in every process.

        The bits are the same everywhere where the devices are of one kind. Raises `ValueError`
        where the statistics do not fit into float64.
        """
        self._check_spread("the calibration", *jax.tree.leaves(self.parts))
        with _float64_on(self.mesh):
            everywhere = _combined(self.parts, mesh=self.mesh, axis=self.axis)
        here = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), everywhere)
        return check_range("The statistics of all devices", here)

    def _check_spread(self, name: str, *arrays: Any) -> None:
        sharding = _spread_over(self.mesh, self.axis)
        for array in arrays:
            here = array.sharding if isinstance(array, Array) else None
            if here is None or not here.is_equivalent_to(sharding, array.ndim):
                raise ValueError(
                    f"The leading axis of {name} must be spread over the axis {self.axis!r} of the "
                    f"mesh; got {here}. Move it there: `jax.device_put(array, "
                    f"NamedSharding(mesh, PartitionSpec({self.axis!r})))`."
                )

    def _spread(self, name: str, rows: Any) -> Float[Array, "samples inputs"]:
        sharding = _spread_over(self.mesh, self.axis)
        if isinstance(rows, Array) and len(rows.sharding.device_set) > 1:
            self._check_spread(f"`{name}`", rows)
            for shard in rows.addressable_shards:
                check_array(name, shard.data, "samples", "inputs", lent=True)
            return jax.device_put(rows, sharding)  # moves nothing, but names this very mesh
        rows = check_array(name, rows, "samples", "inputs", lent=True)
        devices = self.mesh.local_mesh.shape[self.axis]
        if rows.shape[0] % devices:
            raise ValueError(
                f"`{name}` has {rows.shape[0]} samples, which {devices} devices cannot share "
                "evenly. Give a multiple; merge what remains from a calibration of its own."
            )
        return jax.make_array_from_process_local_data(sharding, rows)


def recover_layers(
    layers: Sequence[Observed], rank: int, method: AbstractMethod, mesh: Mesh, axis: str
) -> list[Recovery]:
    """`recover` each of many layers of one shape, spread over the devices of this process.

    ```python
    recoveries = recover_layers(layers, 8, ActivationWeighted(), mesh, "rows")
    ```

    The result is that of a loop, up to rounding. Every device works on its own layers, one after
    the other, and none waits for another; over several hosts, each process gives its own layers.
    Weights and calibrations of all layers are copied once, so give as many as the devices hold.

    Raises `ValueError` for what `recover` refuses, for layers that differ in shape, dtype or in
    what was observed, and for an axis that the mesh does not have.
    """
    _spread_over(mesh, axis)
    local = mesh.local_mesh
    if not layers or not all(isinstance(layer, Observed) for layer in layers):
        raise ValueError("`layers` must be one `Observed` or more, in a sequence.")
    kinds = [
        (jax.tree.structure(layer), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(layer)])
        for layer in layers
    ]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"`layers` must be of one shape and dtype, with the same things observed; number "
                f"{number} differs from number 0. Give those of each kind together."
            )
    filled = [*layers, *layers[-1:] * (-len(layers) % local.shape[axis])]
    with _float64_on(local):
        sharding = _spread_over(local, axis)
        stack = jax.tree.map(lambda *each: jax.device_put(np.stack(each), sharding), *filled)
        stack = _recovered(stack, rank=rank, method=method, mesh=local, axis=axis)
    with float64():
        leaves, tree = jax.tree.flatten(jax.device_get(stack))
        each = [[jnp.asarray(leaf[i]) for leaf in leaves] for i in range(len(layers))]
        return [jax.tree.unflatten(tree, own) for own in each]


def _spread_over(mesh: Mesh, axis: str) -> NamedSharding:
    """The leading axis over an axis of the mesh, or a `ValueError` where there is none."""
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"`mesh` must be a mesh such as `jax.make_mesh((jax.device_count(),), ('rows',))`; got "
            f"{type(mesh).__name__}."
        )
    if axis not in mesh.axis_names:
        raise ValueError(f"`axis` must be one of the mesh's {mesh.axis_names}; got {axis!r}.")
    return NamedSharding(mesh, PartitionSpec(axis))


@contextlib.contextmanager
def _float64_on(mesh: Mesh) -> Iterator[None]:
    """Float64, and this mesh in place of the one that the caller may have set."""
    with float64(), jax.set_mesh(mesh):
        yield


def _own(tree: Tree) -> Tree:
    """What this device holds of a tree that is spread over devices."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


@functools.partial(jax.jit, static_argnames=("mesh", "axis"))
def _updated(
    parts: AbstractCalibration, *batch: Array, mesh: Mesh, axis: str
) -> AbstractCalibration:
    def with_own_rows(part: AbstractCalibration, *rows: Array) -> AbstractCalibration:
        return jax.tree.map(lambda leaf: leaf[None], _own(part).update(*rows))

    spread = PartitionSpec(axis)
    return jax.shard_map(with_own_rows, mesh=mesh, in_specs=spread, out_specs=spread)(parts, *batch)


@functools.partial(jax.jit, static_argnames=("mesh", "axis"))
def _combined(parts: AbstractCalibration, *, mesh: Mesh, axis: str) -> AbstractCalibration:
    devices = mesh.shape[axis]
    paired = 1 << devices.bit_length() - 1  # the largest power of two: the others hand theirs over
    over = range(devices - paired)

    def merged(part: AbstractCalibration) -> AbstractCalibration:
        number = lax.axis_index(axis)
        mine = _own(part)
        if over:
            mine = mine.merge(lax.ppermute(mine, axis, [(paired + i, i) for i in over]))
        for bit in (1 << i for i in range(paired.bit_length() - 1)):
            other = lax.ppermute(mine, axis, [(i, i ^ bit) for i in range(paired)])
            lower = number & bit == 0
            mine = _either(lower, mine, other).merge(_either(lower, other, mine))
        if over:
            received = lax.ppermute(mine, axis, [(i, paired + i) for i in over])
            mine = _either(number < paired, mine, received)
        return mine

    return jax.shard_map(
        merged, mesh=mesh, in_specs=PartitionSpec(axis), out_specs=PartitionSpec(), check_vma=False
    )(parts)


def _either(condition: Array, one: Tree, other: Tree) -> Tree:
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


@functools.partial(jax.jit, static_argnames=("rank", "method", "mesh", "axis"))
def _recovered(
    stack: Observed, *, rank: int, method: AbstractMethod, mesh: Mesh, axis: str
) -> Recovery:
    def one_by_one(layers: Observed) -> Recovery:
        return lax.map(lambda layer: recover(layer, rank, method), layers)

    spread = PartitionSpec(axis)
    return jax.shard_map(one_by_one, mesh=mesh, in_specs=spread, out_specs=spread)(stack)
