"""Sentence embeddings by networks of the BERT family.

BERT, MiniLM and DistilBERT are read from a folder with `model.safetensors`, `config.json` and
`vocab.txt`, as model hubs keep them; `LAYOUT` says what the folder named by `LOWRANK_DATA` holds.
On the test part of STS-B (`texts.stsb_data`), all-MiniLM-L6-v2 has a Spearman correlation of
0.8203.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from safetensors import SafetensorError, safe_open

from lowrank_theory._numerics import check_count
from lowrank_theory.models._sources import Source

MINILM = "all-MiniLM-L6-v2"

LAYOUT = """\
  {folder}/model.safetensors, {folder}/config.json, {folder}/vocab.txt
    as they are on the page of a model with model_type bert or distilbert at huggingface.co, for
    instance sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0); tokenizer_config.json is read
    where it is there."""

_DTYPES = ("F64", "F32", "F16", "BF16")
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


class Tokens(NamedTuple):
    """Texts as numbers: those of their tokens, and where there is one; the rest is padding."""

    ids: Int[Array | np.ndarray, "texts length"]
    mask: Bool[Array | np.ndarray, "texts length"]


class Bert(eqx.Module):
    r"""The encoder of Devlin, Chang, Lee and Toutanova (2019), with the mean of its outputs as an
    embedding of the text (Reimers and Gurevych 2019).

    A token is the sum of its embedding, that of its place and that of the first segment,
    normalised. Each layer adds to its inputs what the heads attend to, normalises, adds what two
    affine layers with an activation between them make of that, and normalises again:

    $$x \leftarrow \nu_1(x + W_o\,\text{attention}(x)), \qquad
    x \leftarrow \nu_2(x + W_{down}\, g(W_{up}\, x)) ,$$

    each affine layer with a bias, and $g(x) = x\,\Phi(x)$ or $\max(x, 0)$. Padding is attended to
    by no token and is zero in whatever a weight multiplies, so that it adds nothing to a sum over
    rows; it does count as rows. To observe without it, take texts that fill the length.
    """

    heads: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def hidden(self, parameters: PyTree, tokens: Tokens) -> Float[Array, "texts length width"]:
        """The outputs of the last layer, zero at padding.

        Raises `ValueError` for tokens of another shape or dtype, or more than there are places.
        """
        embeddings = parameters["embeddings"]
        places = embeddings["positions"].shape[0]
        ids, mask = tokens
        if ids.ndim != 2 or ids.shape != mask.shape or ids.shape[1] > places:
            raise ValueError(
                f"`tokens` must be ids and mask of one shape (texts, at most {places}); got "
                f"{ids.shape} and {mask.shape}."
            )
        if not jnp.issubdtype(ids.dtype, jnp.integer) or mask.dtype != bool:
            raise ValueError(
                f"`tokens` must be integers and truth values; got {ids.dtype} and {mask.dtype}."
            )
        x = embeddings["words"][ids] + embeddings["positions"][: ids.shape[1]]
        if "segments" in embeddings:
            x = x + embeddings["segments"][0]
        present = jnp.asarray(mask)[..., None]
        x = self._normalised(embeddings["norm"], x) * present
        activation = _ACTIVATIONS[self.activation]
        for layer in parameters["layers"]:
            attended = _affine(layer["output"], self._attention(layer, x, present))
            x = self._normalised(layer["attention_norm"], x + attended) * present
            inner = activation(_affine(layer["up"], x)) * present
            x = self._normalised(layer["output_norm"], x + _affine(layer["down"], inner)) * present
        return x

    def apply(self, parameters: PyTree, tokens: Tokens) -> Float[Array, "texts width"]:
        """The embeddings, of length one; it raises what `hidden` raises."""
        pooled = self.hidden(parameters, tokens).sum(axis=1)  # the mean, but for its length
        return pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True)

    def _attention(self, layer: PyTree, x: Array, present: Array) -> Array:
        def split(name: str) -> Array:
            return _affine(layer[name], x).reshape(*x.shape[:2], self.heads, -1)

        query, key, value = split("query"), split("key"), split("value")
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
        scores = jnp.where(present[:, None, None, :, 0], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
        return mixed.reshape(x.shape) * present

    def _normalised(self, norm: PyTree, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + self.epsilon) * norm["scale"] + norm["bias"]


def _affine(layer: PyTree, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


# --- the files -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Names:
    """How a kind of network calls its sizes in `config.json`, and its layers in the weights."""

    prefix: str
    width: str
    inner: str
    heads: str
    layers: str
    activation: str
    layer: str
    parts: tuple[str, ...]  # query, key, value, output, attention_norm, up, down, output_norm
    segments: bool


_PARTS = ("query", "key", "value", "output", "attention_norm", "up", "down", "output_norm")
_KINDS = {
    "bert": _Names(
        "bert.",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "hidden_act",
        "encoder.layer",
        (
            *(f"attention.self.{part}" for part in ("query", "key", "value")),
            *("attention.output.dense", "attention.output.LayerNorm"),
            *("intermediate.dense", "output.dense", "output.LayerNorm"),
        ),
        segments=True,
    ),
    "distilbert": _Names(
        "distilbert.",
        "dim",
        "hidden_dim",
        "n_heads",
        "n_layers",
        "activation",
        "transformer.layer",
        (
            *(f"attention.{part}_lin" for part in ("q", "k", "v", "out")),
            *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
        ),
        segments=False,
    ),
}


def _source(folder: str | Path) -> Source:
    return Source(folder, LAYOUT.format(folder=folder))


def bert_network(folder: str | Path = MINILM) -> tuple[Bert, dict[str, Any]]:
    """The network in a folder, below that named by `LOWRANK_DATA` or absolute, and its parameters
    in float32, whatever their precision in the file.

    They are `{"embeddings": {"words": ..., "positions": ..., "segments": ..., "norm": norm},
    "layers": [{"query": layer, "key": layer, "value": layer, "output": layer, "attention_norm":
    norm, "up": layer, "down": layer, "output_norm": norm}, ...]}`, where each layer is `{"kernel":
    ..., "bias": ...}` with a kernel (inputs, outputs), and each norm `{"scale": ..., "bias": ...}`.
    DistilBERT has no segments. Poolers and heads of the file are not read.

    Raises `FileNotFoundError` where a file is missing and `ValueError` where one is damaged, or of
    another kind of network.
    """
    source = _source(folder)
    config_path, config = source.json("config.json")
    names = _KINDS.get(str(config.get("model_type")))
    if names is None:
        raise source.damaged(
            config_path, f"model_type is {config.get('model_type')!r}, not one of {list(_KINDS)}"
        )

    def size(key: str) -> int:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise source.damaged(config_path, f"{key} is {config.get(key)!r}, not a positive count")
        return config[key]

    width, heads, activation = size(names.width), size(names.heads), config.get(names.activation)
    if width % heads:
        raise source.damaged(config_path, f"{heads} heads do not divide a width of {width}")
    if activation not in _ACTIVATIONS:
        raise source.damaged(
            config_path, f"{names.activation} is {activation!r}, not one of {list(_ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise source.damaged(config_path, "its places are not embedded absolutely")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < np.inf:
        raise source.damaged(config_path, f"layer_norm_eps is {epsilon!r}, not a positive number")
    weights = _Weights(source, names.prefix)
    embeddings: dict[str, Any] = {
        "words": weights.array("embeddings.word_embeddings.weight", size("vocab_size"), width),
        "positions": weights.array(
            "embeddings.position_embeddings.weight", size("max_position_embeddings"), width
        ),
        "norm": weights.norm("embeddings.LayerNorm", width),
    }
    if names.segments:
        embeddings["segments"] = weights.array(
            "embeddings.token_type_embeddings.weight", size("type_vocab_size"), width
        )
    inner = size(names.inner)
    shapes = {"up": (width, inner), "down": (inner, width)}

    def layer(number: int) -> dict[str, Any]:
        return {
            part: weights.norm(f"{names.layer}.{number}.{name}", width)
            if part.endswith("norm")
            else weights.affine(f"{names.layer}.{number}.{name}", *shapes.get(part, (width, width)))
            for part, name in zip(_PARTS, names.parts, strict=True)
        }

    layers = [layer(number) for number in range(size(names.layers))]
    if weights.has(f"{names.layer}.{len(layers)}.{names.parts[0]}.weight"):
        raise source.damaged(weights.path, f"it has more than {len(layers)} layers")
    return Bert(heads, epsilon, activation), {"embeddings": embeddings, "layers": layers}


class _Weights:
    """The arrays of a safetensors file, whose names may begin with a prefix."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source, self.path = source, source.find("model.safetensors")
        try:
            self.file = safe_open(self.path, "numpy")
        except (SafetensorError, OSError) as error:
            raise source.damaged(self.path, f"it is no safetensors file ({error})") from error
        self.names = {name.removeprefix(prefix): name for name in self.file.keys()}  # noqa: SIM118

    def has(self, name: str) -> bool:
        return name in self.names

    def array(self, name: str, *shape: int) -> Array:
        if not self.has(name):
            raise self.source.damaged(self.path, f"it has no {name}")
        try:
            stored = self.file.get_slice(self.names[name])
            kind, found = stored.get_dtype(), tuple(stored.get_shape())
            if found != shape:  # looked at before it is read
                raise self.source.damaged(self.path, f"{name} has shape {found}, not {shape}")
            if kind not in _DTYPES:
                raise self.source.damaged(self.path, f"{name} is {kind}, not one of {_DTYPES}")
            array = self.file.get_tensor(self.names[name])
        except (SafetensorError, OSError) as error:
            raise self.source.damaged(self.path, f"{name}: {error}") from error
        return jnp.asarray(self.source.checked(self.path, name, array, shape))

    def affine(self, name: str, inputs: int, outputs: int) -> dict[str, Array]:
        kernel = self.array(f"{name}.weight", outputs, inputs).T
        return {"kernel": kernel, "bias": self.array(f"{name}.bias", outputs)}

    def norm(self, name: str, width: int) -> dict[str, Array]:
        scale = "weight" if self.has(f"{name}.weight") else "gamma"  # as the first files have it
        bias = "bias" if scale == "weight" else "beta"
        return {
            "scale": self.array(f"{name}.{scale}", width),
            "bias": self.array(f"{name}.{bias}", width),
        }


def bert_tokens(texts: Sequence[str], *, folder: str | Path = MINILM, length: int = 256) -> Tokens:
    """The tokens of texts by the vocabulary of a folder, padded to the longest of them.

    A text of more than `length` tokens, its marks of start and end among them, is cut. Upper case
    counts where `tokenizer_config.json` says `"do_lower_case": false`. It needs the package
    `tokenizers`.

    Raises `ValueError` for an empty list, or a damaged vocabulary, `FileNotFoundError` where that
    is missing, and `ImportError` without the package.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"`texts` must be a list of one text or more; got {texts!r}.")
    length = check_count("length", length, 3)
    tokenizer = _tokenizer(_source(folder))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    return Tokens(
        np.array([text.ids for text in encoded], np.int32),
        np.array([text.attention_mask for text in encoded], bool),
    )


def _tokenizer(source: Source) -> Any:
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise ImportError("`bert_tokens` needs the package `tokenizers`: install it.") from error
    path, content = source.text("vocab.txt")
    words = [word.removesuffix("\r") for word in content.removesuffix("\n").split("\n")]
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(words)
    if missing:
        raise source.damaged(path, f"it has no {', '.join(sorted(missing))}")
    known = source.json("config.json")[1].get("vocab_size")
    if isinstance(known, int) and len(words) > known:
        raise source.damaged(path, f"it has {len(words)} entries, and the network {known}")
    lower = True
    if source.path("tokenizer_config.json").is_file():
        lower = bool(source.json("tokenizer_config.json")[1].get("do_lower_case", True))
    return BertWordPieceTokenizer(str(path), lowercase=lower)


def embed(
    function: Callable[[PyTree, Tokens], Array],
    parameters: PyTree,
    tokens: Tokens,
    *,
    batch: int = 64,
) -> Float[np.ndarray, "texts width"]:
    """The embeddings `function(parameters, tokens)` of many texts, computed in batches of texts
    about equally long, cut to a multiple of 16 tokens.
    """
    batch = check_count("batch", batch, 1)
    run = jax.jit(function)
    lengths = np.asarray(tokens.mask).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        width = -16 * (-int(lengths[rows[-1]]) // 16)
        parts.append(run(parameters, Tokens(tokens.ids[rows, :width], tokens.mask[rows, :width])))
    return np.concatenate(parts)[np.argsort(order)]
