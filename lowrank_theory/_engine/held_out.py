"""How far a compressed network is from the original on held-out units: layer by layer, and whole.

A unit is a batch that holds one of what is drawn independently: an image, a sequence, a document.
The losses are those of `lowrank_theory.certification`, for `certify_losses`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory._engine.compressed import Compressed
from lowrank_theory._engine.observer import Observer, check_no_nan
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory.approximations import AbstractApproximation
from lowrank_theory.certification import relative_losses, row_norms

Progress = Callable[[int, int], None]


def unit_errors(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    compressed: Compressed,
    units: Sequence[PyTree],
    *,
    progress: Progress | None = None,
) -> dict[str, Float[np.ndarray, " units"]]:
    r"""The losses of each layer alone, by its path, on what it meets in the original network.

    On the rows $X$ of one unit, a layer with weights $W$, factors $L, R$ and shift $s$ loses
    $\min(1, \lVert XW - XLR - \mathbf 1s^\top\rVert_F^2 / \lVert XW\rVert_F^2)$, computed in
    float64. This is the product itself: a bias that the network adds later is in neither norm. The
    slices of a stack and the uses of one weight are taken together. Layers that stayed dense are
    left out.

    `function` is compiled once for each shape of a unit; `progress(done, total)` is called after
    every unit. Raises `ValueError` for no units, numbers that are not finite in one or on the way,
    a function that cannot be traced, and a compressed network of another function.
    """
    layers = _replaced(parameters, compressed)
    observer = Observer(function, parameters, layers.__contains__) if layers else None
    norms = {path: np.zeros((2, len(units))) for path in layers}
    for number, unit in _counted(units, progress):
        met: set[str] = set()
        name = f"units[{number}]"
        check_no_nan(name, unit)
        for uses, slices in observer.input_rows_of(unit, layers) if observer else ():
            rows = [np.asarray(each, float) for each in slices]
            for path, _ in uses:
                found = norms[path][:, number]
                norms[path][:, number] = np.hypot(found, layers[path].norms(rows))
                met.add(path)
        if missing := layers.keys() - met:
            raise ValueError(
                f"`function` does not multiply by {', '.join(sorted(missing))}, which `compressed` "
                "replaced: it must be the function that was compressed."
            )
        for path in layers:
            _check_finite(norms[path][:, number], f"what {path} multiplies", name)
    return {path: relative_losses(*both) for path, both in norms.items()}


def output_errors(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    compressed: Compressed,
    units: Sequence[PyTree],
    *,
    progress: Progress | None = None,
) -> Float[np.ndarray, " units"]:
    """The losses of the whole network: all floating-point arrays that `function` returns for a
    unit, taken together, against those of the compressed network.

    Both are compiled once for each shape of a unit; `progress(done, total)` is called after every
    unit. Raises `ValueError` for no units, NaN in one, units that the networks cannot take, and
    outputs that are not finite, not floating point, or of other shapes.
    """
    # Apart, and not in a function of their own: JAX then knows a program that it compiled before.
    run, run_compressed = eqx.filter_jit(function), eqx.filter_jit(compressed.function)
    norms = np.zeros((2, len(units)))
    for number, unit in _counted(units, progress):
        name = f"units[{number}]"
        check_no_nan(name, unit)
        try:
            results = run(parameters, unit), run_compressed(compressed.parameters, unit)
        except Exception as error:
            raise ValueError(
                f"`{name}` cannot be given to the networks: {type(error).__name__}: {error}"
            ) from error
        original, replaced = map(float_outputs, results)
        shapes = [[array.shape for array in arrays] for arrays in (original, replaced)]
        if not original or shapes[0] != shapes[1]:
            raise ValueError(
                "The networks must return floating-point arrays of the same shapes; got "
                f"{shapes[0]} and {shapes[1]}."
            )
        for array, other in zip(original, replaced, strict=True):
            norms[:, number] = np.hypot(norms[:, number], _norms(array, other))
        _check_finite(norms[:, number], "an output of one of the networks", name)
    return relative_losses(*norms)


class _Pair(NamedTuple):
    """A weight, and what replaced each of its slices, in float64."""

    weights: Float[np.ndarray, "slices inputs outputs"]
    given: list[AbstractApproximation]

    @np.errstate(over="ignore", invalid="ignore")
    def norms(self, rows: list[Float[np.ndarray, "_rows inputs"]]) -> np.ndarray:
        """The norms of the error and of the outputs, over all slices."""
        found = np.zeros(2)
        for x, weights, given in zip(rows, *self, strict=True):
            found = np.hypot(found, _norms(x @ weights, np.asarray(given.apply(x))))
        return found


@np.errstate(over="ignore", invalid="ignore")
def _norms(original: np.ndarray, replaced: np.ndarray) -> np.ndarray:
    both = np.stack([np.ravel(original - replaced), np.ravel(original)])
    return row_norms(both)


def _replaced(parameters: PyTree, compressed: Compressed) -> dict[str, _Pair]:
    chosen = {path: layer for path, layer in compressed.layers.items() if layer.size is not None}
    dense, smaller = leaves_by_path(parameters), leaves_by_path(compressed.parameters)
    pairs = {}
    for path, layer in chosen.items():
        matrices = np.asarray(layer.view.matrix(dense[path]), float)
        given = jax.tree.map(np.asarray, smaller[path])
        given = given.map_floats(lambda array: array.astype(np.float64))
        stack = range(math.prod(matrices.shape[:-2]))
        flat = jax.tree.map(lambda array, of=matrices: _flat(array, of), given)
        slices = [jax.tree.map(lambda array, k=k: array[k], flat) for k in stack]
        pairs[path] = _Pair(matrices.reshape(-1, *matrices.shape[-2:]), slices)
    return pairs


def _flat(array: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """With one axis for the stack."""
    axes = matrices.ndim - 2
    return array.reshape(math.prod(array.shape[:axes]), *array.shape[axes:])


def float_outputs(tree: PyTree) -> list[np.ndarray]:
    """The floating-point arrays that a network returned, in float64."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return [np.asarray(x, float) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]


def _counted(units: Sequence[PyTree], progress: Progress | None) -> Iterator[tuple[int, PyTree]]:
    if not len(units):
        raise ValueError("`units` is empty: hold out at least one unit.")
    for number, unit in enumerate(units):
        yield number, unit
        if progress is not None:
            progress(number + 1, len(units))


def _check_finite(norms: np.ndarray, what: str, name: str) -> None:
    if not np.all(np.isfinite(norms)):
        raise ValueError(f"For `{name}`, {what} is not finite.")
