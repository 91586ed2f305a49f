"""The topics of news by a network of the BERT family: all-MiniLM-L6-v2, fine-tuned to AG News.

`experiments/train_ag_news.py` makes the file of its weights, from 4,800 of the training texts that
`texts.ag_news_data` reads.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lowrank_theory.models._sources import Source
from lowrank_theory.models.bert import Bert, Tokens, bert_network

CLASSES = 4
LENGTH = 64  # tokens to which a text is cut
FOLDER = "ag_news_minilm"
FILE = "classifier.npz"

LAYOUT = f"""\
  {FOLDER}/{FILE}
    the weights of the classifier; `python experiments/train_ag_news.py` makes them, and writes
    them to out/{FOLDER}/{FILE}, where they are found as well."""


class NewsNetwork(eqx.Module):
    r"""An encoder, and an affine layer above the mean of its outputs:
    $\text{logits} = W^\top \tfrac1n \sum_{i \le n} h_i + b$ for the outputs $h_i$ of $n$ tokens.
    """

    encoder: Bert

    def apply(self, parameters: PyTree, tokens: Tokens) -> Float[Array, "texts classes"]:
        """The logits. `parameters` are those of the encoder and, as `"head"`, `{"kernel": ...,
        "bias": ...}`; it raises what `Bert.hidden` raises.
        """
        outputs = self.encoder.hidden(parameters, tokens).sum(axis=1)
        mean = outputs / jnp.asarray(tokens.mask).sum(axis=1, keepdims=True)
        return mean @ parameters["head"]["kernel"] + parameters["head"]["bias"]


def news_network() -> tuple[NewsNetwork, dict[str, Any]]:
    """The network and its parameters, in float32 (the file has them in float16).

    They are those of `bert.bert_network`, of which the layers are the fine-tuned ones, and the
    head. The file is that in `out`, below the working directory, or else in the folder named by
    `LOWRANK_DATA`.

    Raises `FileNotFoundError` where a file is missing, which says what makes it, and `ValueError`
    where one is damaged.
    """
    encoder, parameters = bert_network()
    like = trained_part(parameters, head(parameters))
    shapes = {name: array.shape for name, array in by_name(like).items()}
    made = Source(Path("out", FOLDER).absolute(), LAYOUT)
    source = made if made.path(FILE).is_file() else Source(FOLDER, LAYOUT)
    stored = source.arrays(FILE, shapes)
    leaves = [jnp.asarray(stored[name]) for name in shapes]
    trained = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return NewsNetwork(encoder), {"embeddings": parameters["embeddings"], **trained}


def head(parameters: PyTree) -> dict[str, Array]:
    """One that knows nothing yet: of zeros."""
    width = parameters["embeddings"]["words"].shape[1]
    return {"kernel": jnp.zeros((width, CLASSES)), "bias": jnp.zeros(CLASSES)}


def trained_part(parameters: PyTree, head: PyTree) -> dict[str, Any]:
    """What is trained: the layers of the encoder, and the head; embeddings stay."""
    return {"layers": parameters["layers"], "head": head}


def by_name(tree: PyTree) -> dict[str, Array | np.ndarray]:
    """The arrays of what is trained by the names that they have in the file, in its order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
