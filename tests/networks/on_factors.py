"""Functions that run on factors, and the same on their products."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_theory.approximations import AbstractApproximation
from lowrank_theory.networks import observe, replace
from routes import INPUTS, MODELS, OUTPUTS, factors_of


def replaced(function, parameters, batch, *, rank=2):
    """All that can be followed on random factors, and the same function on their products."""
    views = observe(function, parameters, [batch]).views
    factors = {path: factors_of(view, k, rank) for k, (path, view) in enumerate(views.items())}
    dense = with_products(parameters, factors, views)
    return *replace(function, parameters, factors), dense, views


def with_products(parameters, factors, views):
    def product(path, leaf):
        name = jax.tree_util.keystr(path)
        if name not in factors:
            return leaf
        return jnp.asarray(views[name].leaf(factors[name].left @ factors[name].right))

    return jax.tree_util.tree_map_with_path(product, parameters)


@functools.cache
def model_on_factors(name):
    model = MODELS[name]()
    return model, *replaced(model.function, model.parameters, model.batch)


def assert_close(actual, desired, roundings=200):
    """Trees of equal structure, shapes and dtypes, equal up to the rounding of float32."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        tolerance = roundings * float(np.finfo(np.float32).eps) * float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def sizes(jaxpr):
    """How many entries each array has that a program computes, its loops and branches included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def forms_matrix(function, *arguments):
    return INPUTS * OUTPUTS in sizes(jax.make_jaxpr(function)(*arguments).jaxpr)


def named(tree):
    """The leaves of a tree by path, factors taken for leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, lambda leaf: isinstance(leaf, AbstractApproximation)
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
