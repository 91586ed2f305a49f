"""What each weight of a JAX function multiplies: where, and as calibrations."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import PyTree

from lowrank_theory._engine.observation import Observation, Survey
from lowrank_theory._engine.observer import Observer, nothing_followed
from lowrank_theory.calibration import AbstractCalibration, Calibration


def observe(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    *,
    select: Callable[[str], bool] | None = None,
    compressed: tuple[Callable[[Any, Any], Any], PyTree] | None = None,
    calibration: type[AbstractCalibration] = Calibration,
) -> Observation:
    r"""Stream the statistics of what multiplies each weight of `function(parameters, batch)`: its
    second moments, unless another kind of `calibration` is asked for (`TriangularCalibration`).

    The function is any that JAX can trace, of any library; it is traced and compiled once for each
    shape of a batch, and is not changed. A leaf of the parameters is a weight where it enters
    `jax.lax.dot_general` or `jax.lax.conv_general_dilated`, also through transposes, reshapes,
    casts, `jit`, `vmap`, `scan`, `cond`, `checkpoint`, `custom_jvp` and `custom_vjp`. The axes that
    the product sums over are its inputs; each index of the other axes of what it meets is a row.

    Of a convolution the rows are the patches, one calibration per group. A weight that a loop
    slices has one per slice; one that is used more than once counts the rows of all its uses. A
    branch of `cond` counts when it is taken. Where a weight meets complex numbers, their real and
    their imaginary parts are rows; complex weights are not followed. In memory are the inputs of
    the selected weights for one batch, and the patches of one convolution: `select`, a predicate of
    the path, keeps large networks to some layers at a time.

    With `compressed`, the function and the parameters of a compressed network as `replace` returns
    them, each calibration also has the moments of what the same weight meets there, $\tilde X$
    beside $X$. The weights observed must still be dense in it: select those.

    Raises `ValueError` for a function that cannot be traced on a batch, parameters of which none
    enters a product, no batch at all, and numbers that are not finite in a batch or on the way.
    """
    observer = Observer(function, parameters, select)
    observation = observer.observe(batches, compressed=compressed, kind=calibration)
    if not observation:
        raise nothing_followed(observation.not_followed)
    return observation


def survey(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batch: PyTree,
    *,
    select: Callable[[str], bool] | None = None,
) -> Survey:
    """Find where each weight of `function(parameters, batch)` multiplies, without computing.

    The function is traced as by `observe`, and what is said of its arrays follows from their shapes
    alone: leaves of the parameters and of the batch may be `jax.ShapeDtypeStruct`. A branch of
    `cond` counts as if it were taken.

    Raises `ValueError` for a function that cannot be traced on the batch, and parameters of which
    none enters a product.
    """
    return Observer(function, parameters, select).survey(batch)
