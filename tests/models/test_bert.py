"""The encoders compute what their definition says, and files that are no such say so.

No trained DistilBERT is at hand: its reader is tested on random weights in its layout.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from safetensors.flax import save_file

from lowrank_theory.models import bert, texts
from lowrank_theory.networks import observe

pytestmark = pytest.mark.thinned(2)


class Sizes(NamedTuple):
    width: int = 6
    inner: int = 10
    heads: int = 2
    layers: int = 2
    places: int = 12


SIZES, OTHERS = Sizes(), Sizes(width=8, inner=5, heads=4, layers=3, places=9)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sat", "The", "."]
KINDS = ("bert", "distilbert")
PREFIX = {"bert": "encoder.layer.{}.", "distilbert": "transformer.layer.{}."}
NAMES = {  # our part of a layer: its name in each kind of file
    "bert": {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    "distilbert": {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
}
Arrays = dict[str, np.ndarray]


def config_of(kind: str, sizes: Sizes = SIZES) -> dict[str, Any]:
    width, inner, heads, layers, places = sizes
    config = {
        "model_type": kind,
        "max_position_embeddings": places,
        "vocab_size": len(WORDS),
    }
    if kind == "distilbert":
        return config | {
            "dim": width,
            "hidden_dim": inner,
            "n_heads": heads,
            "n_layers": layers,
            "activation": "gelu",
        }
    return config | {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-2,
        "type_vocab_size": 2,
    }


def random_arrays(kind: str, sizes: Sizes = SIZES) -> Arrays:
    random = np.random.default_rng(0)
    width, inner = sizes.width, sizes.inner
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (sizes.places, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    if kind == "bert":
        shapes["embeddings.token_type_embeddings.weight"] = (2, width)
        shapes["pooler.dense.weight"] = (width, width)
    sides = {"up": (inner, width), "down": (width, inner)}
    for layer in range(sizes.layers):
        for part, name in NAMES[kind].items():
            full = PREFIX[kind].format(layer) + name
            weight = (width,) if part.endswith("norm") else sides.get(part, (width, width))
            shapes |= {f"{full}.weight": weight, f"{full}.bias": weight[:1]}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, arrays: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {name: jnp.asarray(array) for name, array in arrays.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BERT; an absolute path needs no LOWRANK_DATA."""
    return write(tmp_path / "model", random_arrays("bert"), config_of("bert"))


def expected_embedding(
    kind: str, sizes: Sizes, arrays: Arrays, ids: list[int], epsilon: float
) -> np.ndarray:
    """Of one text without padding, head by head and token by token in float64."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}

    def normalised(x: np.ndarray, name: str) -> np.ndarray:
        variance = x.var(axis=1, keepdims=True) + epsilon
        standard = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(variance)
        return standard * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    x = arrays["embeddings.word_embeddings.weight"][ids]
    x = x + arrays["embeddings.position_embeddings.weight"][: len(ids)]
    if kind == "bert":
        x = x + arrays["embeddings.token_type_embeddings.weight"][0]
    x = normalised(x, "embeddings.LayerNorm")
    for layer in range(sizes.layers):
        name = {part: PREFIX[kind].format(layer) + full for part, full in NAMES[kind].items()}
        query, key, value = (affine(x, name[part]) for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in np.split(np.arange(sizes.width), sizes.heads):
            for token in range(len(ids)):
                scores = key[:, head] @ query[token, head] / math.sqrt(len(head))
                mixed[token, head] = scipy.special.softmax(scores) @ value[:, head]
        x = normalised(x + affine(mixed, name["output"]), name["attention_norm"])
        inner = affine(x, name["up"])
        inner = inner * scipy.stats.norm.cdf(inner)
        x = normalised(x + affine(inner, name["down"]), name["output_norm"])
    pooled = x.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


TEXTS = [[2, 4, 5, 6, 7, 9, 3], [2, 3], [2, 8, 1, 5, 3]]


def padded(texts: list[list[int]], length: int = 9) -> bert.Tokens:
    ids = np.full((len(texts), length), 7, np.int32)  # no zero: what stands there must not matter
    mask = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return bert.Tokens(ids, mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [SIZES, OTHERS], ids=["small", "others"])
def test_embeddings_are_those_of_the_definition(kind, sizes, tmp_path):
    arrays, config = random_arrays(kind, sizes), config_of(kind, sizes)
    network, parameters = bert.bert_network(write(tmp_path / "model", arrays, config))
    epsilon = config.get("layer_norm_eps", 1e-12)
    expected = [expected_embedding(kind, sizes, arrays, ids, epsilon) for ids in TEXTS]
    found = bert.embed(network.apply, parameters, padded(TEXTS), batch=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    hidden = np.asarray(network.hidden(parameters, padded(TEXTS)))
    assert not hidden[~padded(TEXTS).mask].any()
    again = bert.embed(network.apply, parameters, padded(TEXTS, 7), batch=2)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=2e-5)


def test_other_names_and_precisions_are_read(tmp_path):
    arrays, config = random_arrays("bert"), config_of("bert")
    rounded = {name: np.asarray(jnp.asarray(a, jnp.bfloat16)) for name, a in arrays.items()}
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in rounded.items()
    }
    variants = [
        {name: array.astype(np.float32) for name, array in rounded.items()},
        rounded,
        {f"bert.{name}": array for name, array in rounded.items()},
        older,
    ]
    networks = [
        bert.bert_network(write(tmp_path / str(number), variant, config))
        for number, variant in enumerate(variants)
    ]
    plain, parameters = networks[0]
    for network, others in networks[1:]:
        assert network == plain
        jax.tree.map(np.testing.assert_array_equal, others, parameters)
    half = {name: array.astype(np.float16) for name, array in arrays.items()}
    _, halves = bert.bert_network(write(tmp_path / "half", half, config))
    assert halves["embeddings"]["words"].dtype == jnp.float32


def test_every_kernel_is_observed_and_padding_adds_nothing(folder):
    network, parameters = bert.bert_network(folder)
    seen = observe(network.apply, parameters, [padded(TEXTS[:1])])
    kernels = ("query", "key", "value", "output", "up", "down")
    assert len(seen) == SIZES.layers * len(kernels) and len(seen.shared) == SIZES.layers
    length = len(TEXTS[0])
    short = observe(network.apply, parameters, [padded(TEXTS[:1], length)])
    for path in seen:
        (padded_rows,), (rows,) = seen.slices(path), short.slices(path)
        assert int(padded_rows.count) == 9 and int(rows.count) == length
        np.testing.assert_allclose(
            padded_rows.gram(),
            rows.gram(),
            rtol=1e-4,
            atol=1e-4,
        )
    reasons = dict(seen.not_followed)
    assert "looked up" in reasons.pop("['embeddings']['words']")[0]
    assert all(
        path.endswith(("['bias']", "['scale']", "['positions']", "['segments']"))
        for path in reasons
    )


def test_bad_tokens_are_refused(folder):
    network, parameters = bert.bert_network(folder)
    for tokens in (padded(TEXTS, 13), bert.Tokens(np.ones((2, 3), int), np.ones((2, 2), bool))):
        with pytest.raises(ValueError, match=r"`tokens` must be .* \(texts, at most 12\)"):
            network.apply(parameters, tokens)
    with pytest.raises(ValueError, match="`tokens` must be integers and truth values"):
        network.apply(parameters, bert.Tokens(np.ones((2, 3), int), np.ones((2, 3), int)))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', not one of"),
        ({"hidden_size": "6"}, "hidden_size is '6', not a positive count"),
        ({"num_attention_heads": 4}, "4 heads do not divide a width of 6"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh', not one of"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"position_embedding_type": "relative_key"}, "not embedded absolutely"),
        ({"vocab_size": 11}, r"word_embeddings\.weight has shape \(10, 6\), not \(11, 6\)"),
        ({"num_hidden_layers": 3}, r"it has no encoder\.layer\.2\.attention\.self\.query\.weight"),
        ({"num_hidden_layers": 1}, "it has more than 1 layers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changed, reason, folder):
    (folder / "config.json").write_text(json.dumps(config_of("bert") | changed))
    with pytest.raises(ValueError, match=f"(?s)is damaged or another file: .*{reason}.*huggingf"):
        bert.bert_network(folder)


def test_damaged_files_are_refused(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (b"", b"no safetensors", content[:100], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            bert.bert_network(folder)
    for damaged in ("", "{", "[]"):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            bert.bert_network(folder)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    missing = r"(?s)all-MiniLM-L6-v2.config\.json is missing.*must hold"
    with pytest.raises(FileNotFoundError, match=missing):
        bert.bert_network()
    monkeypatch.delenv("LOWRANK_DATA")
    with pytest.raises(FileNotFoundError, match=r"LOWRANK_DATA is not set"):
        bert.bert_network()


# --- texts ----------------------------------------------------------------------------------------


def test_texts_become_tokens(folder):
    pytest.importorskip("tokenizers")
    tokens = bert.bert_tokens(["The cats sat.", "dog"], folder=folder)
    np.testing.assert_array_equal(tokens.ids, [[2, 4, 5, 6, 7, 9, 3], [2, 1, 3, 0, 0, 0, 0]])
    np.testing.assert_array_equal(tokens.mask, [[1] * 7, [1] * 3 + [0] * 4])
    cut = bert.bert_tokens(["The cats sat."], folder=folder, length=4)
    np.testing.assert_array_equal(cut.ids, [[2, 4, 5, 3]])
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert bert.bert_tokens(["The cats"], folder=folder).ids[0, 1] == WORDS.index("The")


def test_bad_texts_and_vocabularies_are_refused(folder):
    pytest.importorskip("tokenizers")
    for wrong in ([], "one text"):
        with pytest.raises(ValueError, match="`texts` must be a list of one text or more"):
            bert.bert_tokens(wrong, folder=folder)
    for content, reason in (
        ("", "it is empty"),
        ("the\ncat", r"it has no \[CLS\], \[PAD\], \[SEP\], \[UNK\]"),
        ("\n".join([*WORDS, "dog"]), "it has 11 entries, and the network 10"),
    ):
        (folder / "vocab.txt").write_text(content)
        with pytest.raises(ValueError, match=rf"vocab\.txt is damaged.*{reason}"):
            bert.bert_tokens(["the cat"], folder=folder)


# --- the trained network --------------------------------------------------------------------------


def test_check_figure_of_sentence_pairs(data_folder):
    pytest.importorskip("tokenizers")
    for needed in (bert.MINILM, "stsb"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    network, parameters = bert.bert_network()
    data = texts.stsb_data()
    assert [len(part.scores) for part in data] == [5_749, 1_500, 1_379]
    tokens = bert.bert_tokens([*data.test.first, *data.test.second])
    embeddings = bert.embed(network.apply, parameters, tokens)
    first, second = np.split(embeddings, 2)
    assert texts.spearman(first, second, data.test.scores) == pytest.approx(0.8203, abs=1e-4)


@pytest.mark.slow
def test_topics_of_news_are_a_linear_function_of_embeddings(data_folder):
    pytest.importorskip("tokenizers")
    for needed in (bert.MINILM, "ag_news"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    network, parameters = bert.bert_network()
    data = texts.ag_news_data()
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1_900] * 4)
    parts = [texts.News(part.texts[:500], part.labels[:500]) for part in data]
    fitted, held_out = (
        bert.embed(network.apply, parameters, bert.bert_tokens(part.texts)) for part in parts
    )
    found = texts.probe_correct(fitted, parts[0].labels, held_out, parts[1].labels)
    assert abs(int(found.sum()) - 420) <= 2
