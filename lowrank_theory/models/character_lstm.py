"""Recurrent networks that continue the text they were trained on, character by character.

Networks and text are read from a folder of the user's, see `LAYOUT`. That of Shakespeare spends
1.295 nats per character on its text, of whose characters the entropy is 3.31; it probably was
trained on it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from lowrank_theory._numerics import AnyArray, check_count
from lowrank_theory.models._sources import Shapes, Source

LAYOUT = """\
  char_lstm/shakespeare.npz
    with embedding, rnnlm/softmax_w, rnnlm/softmax_b, and the weights and biases of
    rnnlm/multi_rnn_cell/cell_0/basic_lstm_cell/ and .../cell_1/basic_lstm_cell/: the variables in
    models/charRNN/shakespeare of github.com/ml5js/ml5-data-and-models (MIT) at commit
    0612a3e7c51cbffdc5db701dff49d16d1ac26fa8, saved with numpy.savez; the networks beside it, of
    other sizes and with kernel and bias in the place of weights and biases, are read as well
  char_lstm/vocab.json
    from the same folder
  char_lstm/shakespeare.txt
    data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn."""

SHAKESPEARE = "char_lstm/shakespeare.npz"
_MISSPELT = {"": "U", "  ": "u"}  # two keys of the vocabulary as it is published


class CharacterLSTM(eqx.Module):
    r"""Layers of long short-term memory (Hochreiter and Schmidhuber 1997) on characters.

    A character is a row of the embedding. At each step, a layer with the state $(c, h)$ takes $x$:

    $$(i, j, f, o) = [x, h] W + b, \qquad
    c \leftarrow \sigma(f + 1)\,c + \sigma(i) \tanh j, \qquad
    h \leftarrow \sigma(o) \tanh c ,$$

    and hands on $h$. Of the last layer's $h$ the logits of the next character are affine.

    `vocabulary` has the characters in the order of their codes.
    """

    vocabulary: str = eqx.field(static=True)

    def encode(self, text: str) -> Int[np.ndarray, " length"]:
        """The codes of a text.

        Raises `ValueError` for characters that the network does not know.
        """
        codes = {character: code for code, character in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - set(codes))
        if unknown:
            raise ValueError(
                f"`text` has characters that the network does not know: {''.join(unknown)!r}. "
                f"It knows {self.vocabulary!r}."
            )
        return np.array([codes[character] for character in text], np.int32)

    def apply(self, parameters: PyTree, codes: AnyArray) -> Float[Array, "texts length characters"]:
        """The logits of what follows each of the codes (texts, length), each text beginning with
        the state zero.

        Raises `ValueError` for codes that are not a matrix of integers.
        """
        if codes.ndim != 2 or not jnp.issubdtype(codes.dtype, jnp.integer):
            raise ValueError(
                "`codes` must be integers of shape (texts, length); got "
                f"{codes.dtype} of shape {codes.shape}."
            )
        layers, head = parameters["layers"], parameters["head"]
        biases = [layer["bias"] for layer in layers]
        zeros = [jnp.zeros((len(codes), len(bias) // 4), bias.dtype) for bias in biases]

        def step(states: list[tuple[Array, Array]], code: Array) -> tuple:
            x = parameters["embedding"][code]
            after = []
            for layer, (cell, h) in zip(layers, states, strict=True):
                gates = jnp.concatenate([x, h], axis=-1) @ layer["kernel"] + layer["bias"]
                i, j, f, o = jnp.split(gates, 4, axis=-1)
                c = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(j)
                x = jax.nn.sigmoid(o) * jnp.tanh(c)
                after.append((c, x))
            return after, x

        _, outputs = lax.scan(step, [(each, each) for each in zeros], jnp.transpose(codes))
        return jnp.swapaxes(outputs, 0, 1) @ head["kernel"] + head["bias"]


def character_lstm_network(file: str | Path = SHAKESPEARE) -> tuple[CharacterLSTM, dict[str, Any]]:
    """The trained network in a file, below the folder named by `LOWRANK_DATA` or absolute, whose
    vocabulary stands beside it, and its parameters, in float32.

    They are `{"embedding": ..., "layers": [layer, ...], "head": layer}`, where each layer is
    `{"kernel": ..., "bias": ...}`: as many layers as the file has, of its widths.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged, or its
    arrays do not fit together; both say which, and where to get it.
    """
    file = Path(file)
    source = Source(file.parent, LAYOUT)
    vocabulary = _vocabulary(source)
    shapes = source.shapes(file.name)
    embedding, cells, head = _names(shapes)
    width = shapes.size(embedding, axis=1)
    expected: dict[str, tuple[int, ...]] = {embedding: (len(vocabulary), width)}
    for kernel, bias in cells:
        state = shapes.size(bias) // 4
        expected |= {kernel: (width + state, 4 * state), bias: (4 * state,)}
        width = state
    kernel, bias = head
    expected |= {kernel: (width, len(vocabulary)), bias: (len(vocabulary),)}
    arrays = {name: jnp.asarray(x) for name, x in source.arrays(file.name, expected).items()}
    layers = [{"kernel": arrays[kernel], "bias": arrays[bias]} for kernel, bias in (*cells, head)]
    parameters = {"embedding": arrays[embedding], "layers": layers[:-1], "head": layers[-1]}
    return CharacterLSTM(vocabulary), parameters


def _vocabulary(source: Source) -> str:
    """The characters in the order of their codes."""
    path, stored = source.json("vocab.json")
    try:
        codes = {_MISSPELT.get(key, key): code for key, code in stored.items()}
        vocabulary = "".join(sorted(codes, key=codes.__getitem__))
    except TypeError as error:
        raise source.damaged(path, error) from error
    if [codes.get(character) for character in vocabulary] != list(range(len(codes))):
        raise source.damaged(path, "it does not number single characters from 0")
    return vocabulary


Pair = tuple[str, str]  # the names of a kernel and of the bias with it


def _names(shapes: Shapes) -> tuple[str, list[Pair], Pair]:
    """What the file calls the embedding, the cells and the head."""

    def called(word: str, axes: int) -> list[str]:
        names = [n for n, shape in shapes.found.items() if word in n.lower() and len(shape) == axes]
        return sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])

    embeddings = called("embedding", 2)
    kernels, biases = called("lstm", 2), called("lstm", 1)
    heads, shifts = called("softmax", 2), called("softmax", 1)
    counts = [len(names) for names in (embeddings, heads, shifts)]
    if counts != [1, 1, 1] or not kernels or len(kernels) != len(biases):
        raise shapes.damaged(
            "it must have one embedding, a matrix and a vector of each LSTM cell, and softmax_w "
            f"and softmax_b; it has {', '.join(shapes.found) or 'no arrays'}"
        )
    return embeddings[0], list(zip(kernels, biases, strict=True)), (heads[0], shifts[0])


def shakespeare_text() -> str:
    """The text that comes with the network, of 1,115,394 characters; it raises what
    `character_lstm_network` raises.
    """
    return Source(Path(SHAKESPEARE).parent, LAYOUT).text("shakespeare.txt")[1]


def nats_per_character(
    function: Callable[[PyTree, Array], Array],
    parameters: PyTree,
    codes: Int[Array | np.ndarray, " length"],
    *,
    window: int = 1_000,
    lead: int = 100,
    batch: int = 64,
) -> Float[np.ndarray, " windows"]:
    r"""The mean of $-\log p(\text{next} \mid \text{before})$ over each window of a text, whose mean
    is the figure to report.

    Windows stand side by side; before each, the network reads the `lead` characters that precede
    it. What is left of the text is too short for a window. The difference of two networks on the
    same text is paired, by window.

    Raises `ValueError` for a text shorter than one window, its lead and one character.
    """
    window = check_count("window", window, 1)
    lead = check_count("lead", lead, 0)
    batch = check_count("batch", batch, 1)
    text = np.asarray(codes)
    starts = np.arange(0, len(text) - (lead + window), window)
    if not len(starts):
        raise ValueError(
            f"`codes` must have more than {lead + window} characters, a window and its lead; got "
            f"{len(text)}."
        )

    @jax.jit
    def spent(parameters: PyTree, rows: Array) -> Array:
        known = jax.nn.log_softmax(function(parameters, rows[:, :-1])[:, lead:])
        return -jnp.take_along_axis(known, rows[:, lead + 1 :, None], axis=-1).mean(axis=(1, 2))

    rows = text[starts[:, None] + np.arange(lead + window + 1)]
    parts = [spent(parameters, rows[first : first + batch]) for first in range(0, len(rows), batch)]
    return np.concatenate(parts)
