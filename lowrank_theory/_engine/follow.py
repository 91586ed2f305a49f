"""Follow weights through a traced function to the products that they enter.

Transposes, reshapes and casts move a weight, control flow carries it inside, and what happens at a
product is for the two kinds of weight to say: one records its input, one multiplies by factors.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, primitives

from lowrank_theory._engine.views import Layout, MatrixView
from lowrank_theory._numerics import AnyArray


@dataclasses.dataclass
class Scope:
    """What is known while one program, or the body of one loop, is run.

    `remarks` and `views` belong to the whole trace: uses of a leaf that no product explains, and
    how it was first used as a matrix. `layer_inputs` and `memo` belong to one body, whose values
    must not leave it otherwise than as results. `depth` counts the loops around it; `uncounted` is
    why what multiplies in it does not count.
    """

    remarks: dict[str, list[str]]
    views: dict[str, MatrixView]
    depth: int = 0
    uncounted: str = ""
    layer_inputs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)
    kept: dict[int, Any] = dataclasses.field(default_factory=dict)

    def number(self, value: Any) -> int:
        """A number that no other value has while this scope stands."""
        self.kept[id(value)] = value
        return id(value)

    def body(self, *, loops: int = 0, uncounted: str = "") -> "Scope":
        """The scope of a body inside this one."""
        return Scope(self.remarks, self.views, self.depth + loops, self.uncounted or uncounted)

    def remark(self, path: str, remark: str) -> None:
        """Write a remark on a leaf, once."""
        remarks = self.remarks.setdefault(path, [])
        if remark not in remarks:
            remarks.append(remark)


class AbstractWeight(eqx.Module):
    """A weight on its way through a program. It is a tree, so that loops and transformations
    carry it.
    """

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def moved(self, move: Callable[..., Any], layout: Layout) -> "AbstractWeight":
        """The same entries in other places."""

    @abc.abstractmethod
    def mapped(self, function: Callable[..., Any]) -> "AbstractWeight":
        """Each entry cast, or otherwise passed through a linear function that acts alike on all."""

    @abc.abstractmethod
    def stacked(self, length: int) -> "AbstractWeight":
        """Ready to be sliced along the first axis by a loop of this length."""

    @abc.abstractmethod
    def slice(self, depth: int) -> "AbstractWeight":
        """Called inside the loop, on what is left of `stacked`."""

    @abc.abstractmethod
    def entries(self, reason: str, scope: Scope) -> AnyArray:
        """The dense array, for a use that is no product."""

    @abc.abstractmethod
    def contracted(self, other: Any, contraction: "Contraction", scope: Scope) -> AnyArray:
        """The product with `other` by `jax.lax.dot_general`."""

    @abc.abstractmethod
    def added(self, other: Any, scope: Scope) -> AnyArray | None:
        """The sum with `other`; `None` where that is a use of its entries like any other."""

    @abc.abstractmethod
    def convolved(self, other: Any, options: dict[str, Any], scope: Scope) -> AnyArray:
        """The convolution of `other` with this kernel, whose axes are (groups, outputs of a group,
        inputs of a group, *window).
        """


class Contraction(NamedTuple):
    """A `jax.lax.dot_general` of a weight with another array, whichever comes first."""

    summed: tuple[int, ...]
    batch: tuple[int, ...]
    other_summed: tuple[int, ...]
    other_batch: tuple[int, ...]
    weight_first: bool
    options: dict[str, Any]

    def of(self, weight: Any, other: Any) -> Any:
        """The product itself, of two arrays."""
        arrays = [(weight, self.summed, self.batch), (other, self.other_summed, self.other_batch)]
        (lhs, *left), (rhs, *right) = arrays if self.weight_first else arrays[::-1]
        numbers = ((left[0], right[0]), (left[1], right[1]))
        return lax.dot_general(lhs, rhs, numbers, **self.options)


# --- tracing and running -------------------------------------------------------------------------


def is_array(leaf: Any) -> bool:
    """Is a leaf data, rather than a part of the program?"""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def trace(function: Callable[..., Any], *arguments: Any) -> tuple[ClosedJaxpr, Callable[..., Any]]:
    """The program of a function, whose inputs and results are the arrays among the leaves, and what
    turns its results into those of the function.
    """
    leaves, tree = jax.tree.flatten(arguments)
    arrays = [k for k, leaf in enumerate(leaves) if is_array(leaf)]
    results: list[Any] = []

    def flat(*values: Any) -> list[Any]:
        filled = list(leaves)
        for k, value in zip(arrays, values, strict=True):
            filled[k] = value
        out, out_tree = jax.tree.flatten(function(*jax.tree.unflatten(tree, filled)))
        results[:] = [None if is_array(leaf) else leaf for leaf in out], out_tree  # no tracer stays
        return [leaf for leaf in out if is_array(leaf)]

    program = jax.make_jaxpr(flat)(*[leaves[k] for k in arrays])
    out, out_tree = results
    places = [k for k, leaf in enumerate(out) if leaf is None]

    def rebuilt(values: Sequence[Any]) -> Any:
        for k, value in zip(places, values, strict=True):
            out[k] = value
        return jax.tree.unflatten(out_tree, out)

    return program, rebuilt


def run(program: ClosedJaxpr, inputs: Sequence[Any], scope: Scope) -> list[Any]:
    """The results of a program some of whose inputs are weights; some results may be weights."""
    jaxpr = program.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _evaluated(equation, [read(v) for v in equation.invars], scope)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def plain(values: Iterable[Any], reason: str, scope: Scope) -> list[Any]:
    """The values with dense arrays for weights."""
    return [v.entries(reason, scope) if isinstance(v, AbstractWeight) else v for v in values]


def _evaluated(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    primitive = equation.primitive
    if any(isinstance(value, AbstractWeight) for value in inputs):
        results = _RULES[primitive](equation, inputs, scope) if primitive in _RULES else None
        if results is not None:
            return results
        reason = _USES.get(primitive.name, f"its entries are used by `{primitive.name}`")
        return _bound(equation, plain(inputs, reason, scope))
    if primitive not in _MOVES:
        return _bound(equation, inputs)
    # The same move of the same array is the same array: weights that share an input share it still
    # where each call transposes or casts it anew.
    key = (primitive, repr(equation.params), *map(scope.number, inputs))
    if key not in scope.memo:
        scope.memo[key] = _bound(equation, inputs)
    return scope.memo[key]


def _bound(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    options = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*inputs, **options)
    return list(results) if equation.primitive.multiple_results else [results]


# --- what each primitive does with a weight; `None` where it needs the entries --------------------

_USES = {
    "gather": "its rows are looked up (`gather`), not multiplied",
    "dot_general": "its product with another weight, or without a sum, is no layer",
    "conv_general_dilated": "it is convolved as an input, or in batch groups",
    **dict.fromkeys(("add", "sub"), "it is added, not multiplied"),
    **dict.fromkeys(("mul", "div"), "it multiplies entry by entry"),
    **dict.fromkeys(("slice", "dynamic_slice", "split"), "it is cut into parts"),
    "concatenate": "it is joined with other arrays",
}


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _transpose(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    (weight,) = inputs
    return _moved(equation, weight, weight.layout.transposed(equation.params["permutation"]))


def _reshape(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    return _moved(equation, inputs[0], inputs[0].layout.reshaped(_shape(equation.outvars[0])))


def _broadcast(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    (old,), (new,) = equation.invars, equation.outvars
    repeats = math.prod(_shape(old)) != math.prod(_shape(new))
    return None if repeats else _reshape(equation, inputs, scope)


def _moved(equation: JaxprEqn, weight: AbstractWeight, layout: Layout | None) -> list[Any] | None:
    if layout is None:
        return None
    return [weight.moved(lambda array: _bound(equation, [array])[0], layout)]


def _cast(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    kind: Any = equation.outvars[0].aval
    if not jnp.issubdtype(kind.dtype, jnp.inexact):
        return None
    return [inputs[0].mapped(lambda array: _bound(equation, [array])[0])]


def _dot(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    first = isinstance(inputs[0], AbstractWeight)
    (weight, other) = inputs if first else inputs[::-1]
    sides = list(zip(*equation.params["dimension_numbers"], strict=True))
    (summed, batch), (other_summed, other_batch) = sides if first else sides[::-1]
    if isinstance(other, AbstractWeight) or not summed:
        return None
    options = {k: v for k, v in equation.params.items() if k != "dimension_numbers"}
    contraction = Contraction(summed, batch, other_summed, other_batch, first, options)
    return [weight.contracted(other, contraction, scope)]


def _add(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    first = isinstance(inputs[0], AbstractWeight)
    (weight, other) = inputs if first else inputs[::-1]
    result = None if isinstance(other, AbstractWeight) else weight.added(other, scope)
    return None if result is None else [result]


def _convolution(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any] | None:
    other, weight = inputs
    options = dict(equation.params)
    groups, numbers = options["feature_group_count"], options["dimension_numbers"]
    if isinstance(other, AbstractWeight) or options["batch_group_count"] != 1:
        return None
    layout = weight.layout.transposed(numbers.rhs_spec)
    outputs, *rest = (_shape(equation.invars[1])[axis] for axis in numbers.rhs_spec)
    split = (groups, outputs // groups, *rest)
    layout = layout.reshaped(split)
    if layout is None:
        return None
    kernel = weight.moved(lambda w: w.transpose(numbers.rhs_spec).reshape(split), layout)
    rhs_spec = tuple(range(len(numbers.rhs_spec)))
    options["dimension_numbers"] = numbers._replace(rhs_spec=rhs_spec)
    return [kernel.convolved(other, options, scope)]


def _inline(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    name = "jaxpr" if "jaxpr" in equation.params else "call_jaxpr"
    return run(equation.params[name], inputs, scope)


def _remat(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    program = ClosedJaxpr(equation.params["jaxpr"], ())

    def function(inputs: list[Any]) -> tuple:
        body = scope.body()
        results = plain(run(program, inputs, body), "it leaves a checkpoint", body)
        return results, list(body.layer_inputs.values())

    options = {name: equation.params[name] for name in ("policy", "prevent_cse")}
    results, layer_inputs = jax.checkpoint(function, **options)(inputs)
    _receive(layer_inputs, scope)
    return results


def _scan(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    options = equation.params
    program, length, carries = options["jaxpr"], options["length"], options["num_carry"]
    first, last = options["num_consts"], options["num_consts"] + carries

    def step(carry: list[Any], row: list[Any]) -> tuple:
        body = scope.body(loops=1)
        row = [v.slice(scope.depth) if isinstance(v, AbstractWeight) else v for v in row]
        results = run(program, [*inputs[:first], *carry, *row], body)
        results = plain(results, "it leaves a loop", body)
        return results[:carries], (results[carries:], list(body.layer_inputs.values()))

    start = plain(inputs[first:last], "a loop changes it", scope)
    rows = [v.stacked(length) if isinstance(v, AbstractWeight) else v for v in inputs[last:]]
    end, (outputs, layer_inputs) = lax.scan(
        step, start, rows, length, reverse=options["reverse"], unroll=options["unroll"]
    )
    _receive(layer_inputs, scope)
    return [*end, *outputs]


def _while(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    first = equation.params["cond_nconsts"]
    last = first + equation.params["body_nconsts"]
    start = plain(inputs[last:], "a loop changes it", scope)

    def turn(name: str, constants: list[Any]) -> Callable[..., list[Any]]:
        def function(carry: list[Any]) -> list[Any]:
            uncounted = "it multiplies inside a `while` loop, whose number of turns is not known"
            body = scope.body(uncounted=uncounted)
            results = run(equation.params[name], [*constants, *carry], body)
            return plain(results, "it leaves a loop", body)

        return function

    condition = turn("cond_jaxpr", inputs[:first])
    return lax.while_loop(
        lambda carry: condition(carry)[0], turn("body_jaxpr", inputs[first:last]), start
    )


def _cond(equation: JaxprEqn, inputs: list[Any], scope: Scope) -> list[Any]:
    index, *operands = inputs

    def branch(program: ClosedJaxpr) -> Callable[..., tuple]:
        def function(operands: list[Any]) -> tuple:
            body = scope.body()
            results = plain(run(program, operands, body), "it leaves a branch", body)
            return results, list(body.layer_inputs.values())

        return function

    branches = [branch(program) for program in equation.params["branches"]]
    met = [jax.eval_shape(function, operands)[1] for function in branches]

    def with_nothing_elsewhere(which: int) -> Callable[..., tuple]:
        def function(operands: list[Any]) -> tuple:
            results, own = branches[which](operands)
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), met)
            return results, [
                own if k == which else layer_inputs for k, layer_inputs in enumerate(nothing)
            ]

        return function

    results, layer_inputs = lax.switch(
        index, list(map(with_nothing_elsewhere, range(len(branches)))), operands
    )
    _receive([layer_input for branch in layer_inputs for layer_input in branch], scope)
    return results


def _receive(layer_inputs: list[Any], scope: Scope) -> None:
    """Take over what was recorded inside a body."""
    for layer_input in layer_inputs:
        scope.layer_inputs[len(scope.layer_inputs)] = layer_input


_RESHAPES = (primitives.reshape_p, primitives.squeeze_p)
_CASTS = (
    primitives.convert_element_type_p,
    primitives.reduce_precision_p,
    primitives.copy_p,
    primitives.stop_gradient_p,
)
_CALLS = (
    primitives.jit_p,
    primitives.closed_call_p,
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
)
_RULES: dict[Any, Callable[..., list[Any] | None]] = {
    primitives.transpose_p: _transpose,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.dot_general_p: _dot,
    primitives.add_p: _add,
    primitives.conv_general_dilated_p: _convolution,
    primitives.remat_p: _remat,
    primitives.scan_p: _scan,
    primitives.while_p: _while,
    primitives.cond_p: _cond,
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_CALLS, _inline),
}
_MOVES = {primitives.transpose_p, primitives.broadcast_in_dim_p, *_RESHAPES, *_CASTS}
