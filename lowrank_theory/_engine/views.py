"""How the leaf of a tree of parameters is a matrix.

A weight is known by where its entries stand: each axis of the array at hand is a list of pieces of
the axes of the leaf it came from. Transposes and reshapes move the pieces; at a product, the axes
that are summed over say how the leaf is a matrix.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx


class Piece(NamedTuple):
    r"""The index $k$ of one axis of a leaf, in part: $\lfloor k / \text{stride} \rfloor$ modulo
    `size`.
    """

    axis: int
    stride: int
    size: int


Pieces = tuple[Piece, ...]


def size_of(pieces: Iterable[Piece]) -> int:
    """How many values the pieces take together."""
    return math.prod(piece.size for piece in pieces)


def in_leaf_order(pieces: Iterable[Piece]) -> Pieces:
    """The pieces in the order in which the leaf stores them."""
    return tuple(sorted(pieces, key=lambda piece: (piece.axis, -piece.stride)))


def _joined(pieces: Iterable[Piece]) -> Pieces:
    """Neighbouring pieces of one axis, made one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.axis == piece.axis and last.stride == piece.stride * piece.size:
            joined[-1] = Piece(piece.axis, piece.stride, last.size * piece.size)
        else:
            joined.append(piece)
    return tuple(joined)


class Convolution(NamedTuple):
    """How a kernel slides: the window and what `jax.lax.conv_general_dilated` was told."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class MatrixView(eqx.Module):
    """How a leaf of any shape is a matrix, or a stack of matrices: (*stack, inputs, outputs).

    The inputs are the axes that its product sums over, in the order in which the leaf stores them;
    of a convolution those of one patch of one group. Stacked are the slices of a loop, in the order
    of the loops, then the groups of a convolution and the batch axes of a product.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    stack: Pieces = eqx.field(static=True)
    inputs: Pieces = eqx.field(static=True)
    outputs: Pieces = eqx.field(static=True)
    convolution: Convolution | None = eqx.field(static=True, default=None)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """(*stack, inputs, outputs)."""
        stack = (piece.size for piece in self.stack)
        return (*stack, size_of(self.inputs), size_of(self.outputs))

    def matrix(self, leaf: Any) -> Any:
        """The leaf as a matrix or a stack of matrices."""
        stored = in_leaf_order(self._pieces)
        order = [stored.index(piece) for piece in self._pieces]
        split = leaf.reshape([piece.size for piece in stored])
        return split.transpose(order).reshape(self.matrix_shape)

    def leaf(self, matrix: Any) -> Any:
        """The leaf whose matrix this is; the inverse of `matrix`."""
        order = [self._pieces.index(piece) for piece in in_leaf_order(self._pieces)]
        split = matrix.reshape([piece.size for piece in self._pieces])
        return split.transpose(order).reshape(self.shape)

    @property
    def _pieces(self) -> Pieces:
        return (*self.stack, *self.inputs, *self.outputs)


class Layout(NamedTuple):
    """Where the entries of a leaf stand in an array: for each axis the pieces it runs through.

    `sliced` are the pieces that loops have taken away, `loops` the depths of these loops. An axis
    of length one has no pieces.
    """

    path: str
    leaf_shape: tuple[int, ...]
    axes: tuple[Pieces, ...]
    sliced: Pieces = ()
    loops: tuple[int, ...] = ()

    @staticmethod
    def start(path: str, shape: tuple[int, ...]) -> "Layout":
        """The leaf itself."""
        axes = tuple((Piece(k, 1, n),) if n > 1 else () for k, n in enumerate(shape))
        return Layout(path, shape, axes)

    def transposed(self, permutation: Sequence[int]) -> "Layout":
        """After `jax.lax.transpose`."""
        return self._replace(axes=tuple(self.axes[axis] for axis in permutation))

    def reshaped(self, sizes: Sequence[int]) -> "Layout | None":
        """After a reshape to these sizes; `None` where an axis would mix parts of pieces."""
        left = [piece for axis in self.axes for piece in axis]
        axes = []
        for size in sizes:
            taken: list[Piece] = []
            while size_of(taken) < size:
                if not left:
                    return None
                axis, stride, length = left.pop(0)
                needed = size // size_of(taken)
                if size % size_of(taken) or (needed % length and length % needed):
                    return None
                if length > needed:
                    inner = length // needed
                    left.insert(0, Piece(axis, stride, inner))
                    stride, length = stride * inner, needed
                taken.append(Piece(axis, stride, length))
            axes.append(tuple(taken))
        return None if left else self._replace(axes=tuple(axes))

    def slice(self, depth: int) -> "Layout":
        """What a loop at this depth sees of the first axis."""
        first, *axes = self.axes
        loops = (*self.loops, depth) if first else self.loops
        return self._replace(axes=tuple(axes), sliced=(*self.sliced, *first), loops=loops)

    def view(
        self,
        summed: Sequence[int],
        batch: Sequence[int] = (),
        convolution: Convolution | None = None,
    ) -> MatrixView:
        """The leaf as a matrix, in a product that sums over these axes."""
        free = [axis for axis in range(len(self.axes)) if axis not in (*summed, *batch)]
        stack, inputs, outputs = (
            _joined(in_leaf_order(piece for axis in axes for piece in self.axes[axis]))
            for axes in (batch, summed, free)
        )
        stack = (*_joined(self.sliced), *stack)
        return MatrixView(self.leaf_shape, stack, inputs, outputs, convolution)
