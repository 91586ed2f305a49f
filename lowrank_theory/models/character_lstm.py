"""A recurrent network that continues the text it was trained on, character by character.

Network and text are read from a folder of the user's, see `LAYOUT`. The network spends 1.295 nats
per character on that text, of whose characters the entropy is 3.31; it probably was trained on it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from lowrank_theory._numerics import AnyArray, check_count
from lowrank_theory.models._sources import Source

LAYOUT = """\
  char_lstm/shakespeare.npz
    with embedding, rnnlm/softmax_w, rnnlm/softmax_b, and the weights and biases of
    rnnlm/multi_rnn_cell/cell_0/basic_lstm_cell/ and .../cell_1/basic_lstm_cell/: the variables in
    models/charRNN/shakespeare of github.com/ml5js/ml5-data-and-models (MIT) at commit
    0612a3e7c51cbffdc5db701dff49d16d1ac26fa8, saved with numpy.savez
  char_lstm/vocab.json
    from the same folder
  char_lstm/shakespeare.txt
    data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn."""

_SOURCE = Source("char_lstm", LAYOUT)
_WIDTH = 128
_CELL = "rnnlm/multi_rnn_cell/cell_{}/basic_lstm_cell/"
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
        zeros = jnp.zeros((codes.shape[0], head["kernel"].shape[0]), head["kernel"].dtype)

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

        _, outputs = lax.scan(step, [(zeros, zeros)] * len(layers), jnp.transpose(codes))
        return jnp.swapaxes(outputs, 0, 1) @ head["kernel"] + head["bias"]


def character_lstm_network() -> tuple[CharacterLSTM, dict[str, Any]]:
    """The trained network of two layers with 128 units, and its parameters, in float32.

    They are `{"embedding": ..., "layers": [layer, layer], "head": layer}`, where each layer is
    `{"kernel": ..., "bias": ...}`.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged; both
    say which, and where to get it.
    """
    path, stored = _SOURCE.json("vocab.json")
    try:
        codes = {_MISSPELT.get(key, key): code for key, code in stored.items()}
        vocabulary = "".join(sorted(codes, key=codes.__getitem__))
    except TypeError as error:
        raise _SOURCE.damaged(path, error) from error
    if [codes.get(character) for character in vocabulary] != list(range(len(codes))):
        raise _SOURCE.damaged(path, "it does not number single characters from 0")
    shapes = {
        "embedding": (len(codes), _WIDTH),
        "rnnlm/softmax_w": (_WIDTH, len(codes)),
        "rnnlm/softmax_b": (len(codes),),
    }
    for cell in map(_CELL.format, range(2)):
        shapes[f"{cell}weights"] = (2 * _WIDTH, 4 * _WIDTH)
        shapes[f"{cell}biases"] = (4 * _WIDTH,)
    arrays = _SOURCE.arrays("shakespeare.npz", shapes)

    def layer(kernel: str, bias: str) -> dict[str, Array]:
        return {"kernel": jnp.asarray(arrays[kernel]), "bias": jnp.asarray(arrays[bias])}

    return CharacterLSTM(vocabulary), {
        "embedding": jnp.asarray(arrays["embedding"]),
        "layers": [layer(f"{cell}weights", f"{cell}biases") for cell in map(_CELL.format, (0, 1))],
        "head": layer("rnnlm/softmax_w", "rnnlm/softmax_b"),
    }


def shakespeare_text() -> str:
    """The text that comes with the network, of 1,115,394 characters; it raises what
    `character_lstm_network` raises.
    """
    return _SOURCE.text("shakespeare.txt")[1]


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
