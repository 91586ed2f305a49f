"""The recurrent network computes what its definition says, and files that are no such say so."""

import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.models import character_lstm as lstm
from lowrank_theory.networks import observe

CHARACTERS = "e tU\nu"
CELL = "rnnlm/multi_rnn_cell/cell_{}/basic_lstm_cell/"
NAMES = {
    "published": (
        *("embedding", "rnnlm/softmax_w", "rnnlm/softmax_b"),
        *(f"{CELL}weights", f"{CELL}biases"),
    ),
    "newer": (
        *("embedding", "rnnlm/softmax_w", "rnnlm/softmax_b"),
        *(f"{CELL}kernel", f"{CELL}bias"),
    ),
    "older": (
        *("RNN/embedding:0", "RNN/softmax_w:0", "RNN/softmax_b:0"),
        *(
            "RNN/MultiRNNCell/Cell{}/BasicLSTMCell/Matrix:0",
            "RNN/MultiRNNCell/Cell{}/BasicLSTMCell/Bias:0",
        ),
    ),
}
Arrays = dict[str, np.ndarray]


def random_arrays(widths: tuple[int, ...] = (128, 128, 128), names: str = "published") -> Arrays:
    """A network whose embedding and cells have these widths."""
    random = np.random.default_rng(0)
    embedding, softmax_w, softmax_b, kernel, bias = NAMES[names]
    shapes = {embedding: (6, widths[0]), softmax_w: (widths[-1], 6), softmax_b: (6,)}
    for k, (width, state) in enumerate(itertools.pairwise(widths)):
        shapes[kernel.format(k)] = (width + state, 4 * state)
        shapes[bias.format(k)] = (4 * state,)
    return {
        name: (random.normal(size=shape) * (0.2 if len(shape) > 1 else 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "shakespeare.npz"
    np.savez(file, allow_pickle=False, **arrays)
    vocabulary = {character: code for code, character in enumerate(CHARACTERS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return file


@pytest.fixture
def arrays(tmp_path, monkeypatch) -> Arrays:
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    stored = random_arrays()
    write(tmp_path / "char_lstm", stored)
    return stored


def expected_log_probabilities(
    arrays: Arrays, codes: np.ndarray, names: str = "published"
) -> np.ndarray:
    """Of one text, step by step in float64."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    embedding, softmax_w, softmax_b, kernel, bias = NAMES[names]
    cells = (len(arrays) - 3) // 2
    widths = [len(arrays[bias.format(k)]) // 4 for k in range(cells)]
    state = [(np.zeros(width), np.zeros(width)) for width in widths]
    rows = []
    for code in codes:
        x = arrays[embedding][code]
        for k in range(cells):
            c, h = state[k]
            gates = arrays[kernel.format(k)].T @ np.r_[x, h] + arrays[bias.format(k)]
            i, j, f, o = np.split(gates, 4)
            c = c / (1 + np.exp(-f - 1)) + np.tanh(j) / (1 + np.exp(-i))
            x = np.tanh(c) / (1 + np.exp(-o))
            state[k] = (c, x)
        logits = x @ arrays[softmax_w] + arrays[softmax_b]
        rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


def random_codes(length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 6, length, np.int32)


def test_logits_are_those_of_the_definition(arrays):
    network, parameters = lstm.character_lstm_network()
    codes = random_codes(14).reshape(2, 7)
    found = jax.nn.log_softmax(network.apply(parameters, codes))
    for text, row in zip(codes, found, strict=True):
        expected = expected_log_probabilities(arrays, text)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("widths", "names"),
    [
        ((8, 8), "newer"),
        ((4, 6, 10, 3), "published"),
        ((5, *[3] * 11), "newer"),
        ((8, 8, 8), "older"),
    ],
)
def test_sizes_and_names_are_those_of_the_file(widths, names, tmp_path):
    """Of one layer, of several widths, of eleven layers, whose numbers have two digits."""
    arrays = random_arrays(widths, names)
    network, parameters = lstm.character_lstm_network(write(tmp_path / "mine", arrays))
    assert len(parameters["layers"]) == len(widths) - 1
    codes = random_codes(6)
    found = jax.nn.log_softmax(network.apply(parameters, codes[None]))[0]
    expected = expected_log_probabilities(arrays, codes, names)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {CELL.format(1) + "weights": (12, 32)},
            r"cell_1\S*weights has shape \(12, 32\), not \(16, 32",
        ),
        ({CELL.format(0) + "biases": (30,)}, r"cell_0\S*weights has shape .*, not \(15, 28\)"),
        ({"rnnlm/softmax_w": (8, 7)}, r"rnnlm/softmax_w has shape \(8, 7\), not \(8, 6\)"),
        ({"embedding": (7, 8)}, r"embedding has shape \(7, 8\), not \(6, 8\)"),
        ({"embedding": (6,)}, r"it must have one embedding, .*; it has embedding, rnnlm"),
        ({"embedding/Adam": (6, 8)}, r"it must have one embedding, .*embedding/Adam"),
        ({CELL.format(2) + "weights": (16, 32)}, r"a matrix and a vector of each LSTM cell"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changed, reason, tmp_path):
    arrays = random_arrays((8, 8, 8))
    arrays |= {name: np.ones(shape, np.float32) for name, shape in changed.items()}
    with pytest.raises(
        ValueError, match=rf"shakespeare\.npz is damaged or another file: .*{reason}"
    ):
        lstm.character_lstm_network(write(tmp_path / "mine", arrays))


def test_windows_count_each_character_once_after_their_lead(arrays):
    network, parameters = lstm.character_lstm_network()
    codes = random_codes(18)
    found = lstm.nats_per_character(network.apply, parameters, codes, window=5, lead=2, batch=2)
    assert found.shape == (3,)
    for number, nats in enumerate(found):
        text = codes[5 * number : 5 * number + 8]
        known = expected_log_probabilities(arrays, text[:-1])
        spent = [-known[k, text[k + 1]] for k in range(2, 7)]
        assert nats == pytest.approx(np.mean(spent), rel=1e-4)


def test_a_network_that_knows_nothing_spends_the_logarithm_of_the_alphabet():
    found = lstm.nats_per_character(
        lambda logits, rows: jnp.broadcast_to(logits, (*rows.shape, 6)),
        jnp.zeros(6),
        random_codes(40),
        window=10,
        lead=0,
    )
    np.testing.assert_allclose(found, math.log(6), rtol=1e-6)


def test_every_kernel_is_observed_and_the_others_have_their_reasons(arrays):
    network, parameters = lstm.character_lstm_network()
    seen = observe(network.apply, parameters, [random_codes(6).reshape(2, 3)])
    assert set(seen) == {"['head']['kernel']", "['layers'][0]['kernel']", "['layers'][1]['kernel']"}
    assert all(int(seen.slices(path)[0].count) == 6 for path in seen)
    reasons = dict(seen.not_followed)
    assert "looked up" in reasons.pop("['embedding']")[0]
    assert set(reasons.values()) == {("it is added, not multiplied",)} and len(reasons) == 3


def test_text_is_encoded_by_the_vocabulary(arrays, tmp_path):
    network, _ = lstm.character_lstm_network()
    np.testing.assert_array_equal(network.encode("Ut e\n"), [3, 2, 1, 0, 4])
    with pytest.raises(ValueError, match=r"does not know: 'xz'\. It knows 'e tU"):
        network.encode("e zx")
    published = {{"U": "", "u": "  "}.get(c, c): k for k, c in enumerate(CHARACTERS)}
    (tmp_path / "char_lstm" / "vocab.json").write_text(json.dumps(published))
    assert lstm.character_lstm_network()[0] == network


def test_bad_arguments_are_refused(arrays):
    network, parameters = lstm.character_lstm_network()
    with pytest.raises(ValueError, match=r"`codes` must have more than 1100 characters.*got 1100"):
        lstm.nats_per_character(network.apply, parameters, random_codes(1_100))
    for codes in (random_codes(4), np.ones((2, 3))):
        with pytest.raises(ValueError, match=r"`codes` must be integers of shape \(texts, length"):
            network.apply(parameters, codes)


# --- files ----------------------------------------------------------------------------------------


def test_missing_files_are_named(arrays, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"(?s)shakespeare\.txt is missing.*karpathy"):
        lstm.shakespeare_text()
    (tmp_path / "char_lstm" / "shakespeare.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)shakespeare\.npz is missing.*ml5js"):
        lstm.character_lstm_network()
    monkeypatch.delenv("LOWRANK_DATA")
    with pytest.raises(FileNotFoundError, match="LOWRANK_DATA is not set"):
        lstm.character_lstm_network()


def test_line_ends_are_kept(arrays, tmp_path):
    (tmp_path / "char_lstm" / "shakespeare.txt").write_bytes(b"e\r\nt\n")
    assert lstm.shakespeare_text() == "e\r\nt\n"
    for damaged in (b"", b"\xff\xfe"):
        (tmp_path / "char_lstm" / "shakespeare.txt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shakespeare\.txt is damaged"):
            lstm.shakespeare_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"e": 0, "t": 2}',
        '{"e": 0, "t": 0}',
        '{"e": 0, "th": 1}',
        '{"e": "0"}',
        '{"e": 0, "t": null}',
    ],
)
def test_a_damaged_vocabulary_is_refused(content, arrays, tmp_path):
    (tmp_path / "char_lstm" / "vocab.json").write_text(content)
    with pytest.raises(ValueError, match=r"vocab\.json is damaged"):
        lstm.character_lstm_network()


def test_damaged_weights_are_refused(arrays, tmp_path):
    path = tmp_path / "char_lstm" / "shakespeare.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"shakespeare\.npz is damaged"):
        lstm.character_lstm_network()
    np.savez(path, allow_pickle=False, **(arrays | {"embedding": np.zeros((7, 128), np.float32)}))
    with pytest.raises(ValueError, match=r"embedding has shape \(7, 128\), not \(6, 128\)"):
        lstm.character_lstm_network()


# --- the trained network --------------------------------------------------------------------------


@pytest.mark.slow
def test_check_figure(data_folder):
    if not (data_folder / "char_lstm").is_dir():
        pytest.skip(f"{data_folder} has no folder char_lstm/")
    network, parameters = lstm.character_lstm_network()
    codes = network.encode(lstm.shakespeare_text())
    assert len(codes) == 1_115_394 and len(network.vocabulary) == 65
    frequencies = np.bincount(codes) / len(codes)
    assert -np.sum(frequencies * np.log(frequencies)) == pytest.approx(3.31, abs=5e-3)
    nats = lstm.nats_per_character(network.apply, parameters, codes)
    assert float(nats.mean()) == pytest.approx(1.295, abs=1e-3)
    assert float(nats[:500].mean()) == pytest.approx(1.282, abs=1e-3)
