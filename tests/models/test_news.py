"""The classifier of news computes what it says; its training goes on where it was stopped."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.models import news
from lowrank_theory.models.bert import Bert, Tokens, bert_tokens, embed
from lowrank_theory.models.catalogue import available
from lowrank_theory.models.texts import ag_news_data

ROOT = Path(__file__).parents[2]
ENCODER = Bert(2, 1e-6, "gelu")
WIDTH, INNER, WORDS, PLACES = 8, 12, 20, 10


def parameters_of(encoder_layers: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape) * 0.3, jnp.float32)

    def affine(inputs: int, outputs: int) -> dict[str, jax.Array]:
        return {"kernel": array(inputs, outputs), "bias": array(outputs)}

    def norm() -> dict[str, jax.Array]:
        return {"scale": 1 + array(WIDTH), "bias": array(WIDTH)}

    layer = {name: affine(WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
    layer |= {"up": affine(WIDTH, INNER), "down": affine(INNER, WIDTH)}
    layer |= {"attention_norm": norm(), "output_norm": norm()}
    embeddings = {"words": array(WORDS, WIDTH), "positions": array(PLACES, WIDTH), "norm": norm()}
    return {"embeddings": embeddings, "layers": [layer] * encoder_layers}


def tokens_of(texts: int, *, seed: int = 1) -> tuple[Tokens, np.ndarray]:
    """The word at the second place tells the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, news.CLASSES, texts)
    ids = random.integers(news.CLASSES, WORDS, (texts, PLACES)).astype(np.int32)
    ids[:, 1] = labels
    mask = np.arange(PLACES) < random.integers(3, PLACES + 1, (texts, 1))
    return Tokens(ids, mask), labels


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("train_ag_news")


def test_logits_are_of_the_mean_over_tokens_that_are_there():
    parameters = parameters_of()
    random = np.random.default_rng(3)
    head = {"kernel": random.normal(size=(WIDTH, news.CLASSES)), "bias": random.normal(size=4)}
    parameters["head"] = jax.tree.map(lambda each: jnp.asarray(each, jnp.float32), head)
    tokens, _ = tokens_of(5)
    found = jax.jit(news.NewsNetwork(ENCODER).apply)(parameters, tokens)
    for text, mask, logits in zip(tokens.ids, tokens.mask, found, strict=True):
        count = int(mask.sum())
        alone = Tokens(text[None, :count], np.ones((1, count), bool))
        mean = np.asarray(ENCODER.hidden(parameters, alone))[0].mean(axis=0)
        expected = mean @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "BETWEEN", 2)
    plan = script.Plan(training=12, held_out=4, length=PLACES, epochs=2, batch=4, head_rate=0.05)
    parameters, (tokens, labels) = parameters_of(), tokens_of(16)
    arguments = ENCODER, parameters, tokens, labels, plan
    whole = script.train(*arguments, tmp_path / "whole", say=lambda line: None)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after step 3, of which the state of step 2 is kept
        script.train(*arguments, tmp_path / "stopped", say=stop)
    lines = []
    gone_on = script.train(*arguments, tmp_path / "stopped", say=lines.append)
    assert lines[0] == "going on after step 2 of 6" and gone_on.steps == 6
    for name in ("trained", "optimiser", "losses"):
        jax.tree.map(np.testing.assert_array_equal, getattr(gone_on, name), getattr(whole, name))
    assert gone_on.losses[-1] < gone_on.losses[0]
    assert "embeddings" not in gone_on.trained

    monkeypatch.setattr(news, "bert_network", lambda: (ENCODER, parameters))
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"LOWRANK_DATA is not set.\n.*must hold\n"):
        news.news_network()
    for root in ("out", "data"):
        file = tmp_path / root / news.FOLDER / news.FILE
        file.parent.mkdir(parents=True)
        file.write_bytes(script.weights(gone_on.trained))
        network, found = news.news_network()
        trained = {"layers": found["layers"], "head": found["head"]}
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float16)),
            trained, gone_on.trained,
        )  # fmt: skip
        assert network.encoder == ENCODER and found["embeddings"] is parameters["embeddings"]
        file.unlink()
        monkeypatch.setenv("LOWRANK_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match=r"python experiments/train_ag_news.py"):
        news.news_network()
    file.write_bytes(script.weights(gone_on.trained)[:-40])
    with pytest.raises(ValueError, match=r"classifier.npz is damaged or another file"):
        news.news_network()


def test_the_committed_numbers_are_what_was_asked():
    made = json.loads((ROOT / "figures" / "train_ag_news.json").read_text())
    assert made["quick"] is False and made["test_texts"] == 7_600
    assert made["steps"] == len(made["losses"]) == 450
    assert made["accuracy"]["mean"] >= 0.89
    assert made["difference"]["mean"] >= 0.01 and made["difference"]["low"] > 0
    assert made["training_processor_seconds"] <= 1_500


def test_check_figure():
    missing = available("ag_news")
    if missing is not None:
        pytest.skip(missing.splitlines()[0])
    network, parameters = news.news_network()
    test = ag_news_data().test
    tokens = bert_tokens(test.texts[:200], length=news.LENGTH)
    right = np.argmax(embed(network.apply, parameters, tokens), axis=1) == test.labels[:200]
    assert right.mean() > 0.85
