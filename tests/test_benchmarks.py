"""The sequences that we are compared with compute what they should; the page says what was
measured.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tolerance import approx

FOLDER = Path(__file__).parents[1] / "benchmarks"
RESULTS = FOLDER / "results.json"
ROW = {"case", "ours_s", "peer", "peer_s", "ratio", "spread", "ours_error", "peer_error", "seed"}
RANK = 3
rng = np.random.default_rng(0)
WEIGHTS = rng.standard_normal((16, 12)).astype(np.float32)
ACTIVATIONS = (rng.standard_normal((64, 16)) * np.linspace(1, 0.2, 16)).astype(np.float32)
GRAM = ACTIVATIONS.astype(float).T @ ACTIVATIONS.astype(float)


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    names = [file.stem for file in FOLDER.glob("*.py")]
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def quick(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run as from the command line, into a folder of its own."""
    monkeypatch.setattr(modules["run"], "ROOT", tmp_path)
    monkeypatch.setattr(modules["_measure"], "PAUSE", 0.0)

    def run(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["run.py", "--quick", *arguments])
        modules["run"].main()
        return json.loads((tmp_path / "out" / "benchmarks" / "results.json").read_text())

    return run


def error(peers: ModuleType, factors: Any) -> float:
    best = peers.optimum(WEIGHTS, GRAM, (RANK,))[RANK]
    return peers.output_error(WEIGHTS, GRAM, factors) / best


def test_the_oracle_is_the_best_truncation_of_the_outputs(modules: dict[str, ModuleType]):
    outputs = ACTIVATIONS.astype(float) @ WEIGHTS.astype(float)
    values = np.linalg.svd(outputs, compute_uv=False)
    found = modules["_peers"].optimum(WEIGHTS, GRAM, (1, RANK))
    assert found == approx({r: np.linalg.norm(values[r:]) for r in (1, RANK)})
    nothing = np.zeros((16, 1)), np.zeros((1, 12))
    whole = modules["_peers"].output_error(WEIGHTS, GRAM, nothing)
    assert whole == approx(np.linalg.norm(outputs))


@pytest.mark.parametrize("name", ["svd_llm", "svd_llm_v2", "coala", "coala_from_triangle"])
@pytest.mark.parametrize("maker", ["numpy", "torch"])
def test_a_sequence_is_optimal_where_nothing_is_hard(
    name: str, maker: str, modules: dict[str, ModuleType]
):
    peers = modules["_peers"]
    library = getattr(peers, maker)()
    if library is None:
        pytest.skip("PyTorch is not installed")
    seen = {
        "coala": ACTIVATIONS,
        "coala_from_triangle": np.linalg.qr(ACTIVATIONS, mode="r"),
    }.get(name, GRAM)
    arrays = (library.single(array) for array in (WEIGHTS, seen))
    factors = getattr(peers, name)(library, *arrays, RANK)
    assert peers.dense(factors).shape == WEIGHTS.shape
    assert error(peers, factors) == pytest.approx(1, abs=1e-5)


def test_a_shift_saves_a_singular_gram(modules: dict[str, ModuleType]):
    peers = modules["_peers"]
    gram, weights = GRAM.copy(), WEIGHTS.copy()
    gram[0], gram[:, 0], weights[0] = 0, 0, 0  # an input that is never on
    gram[0, 0] = -1e-9
    factors = peers.svd_llm(peers.numpy(), weights, gram, RANK)
    best = peers.optimum(weights, gram, (RANK,))[RANK]
    assert peers.output_error(weights, gram, factors) / best == pytest.approx(1, abs=1e-4)


def test_sketches_and_weights_alone_are_not_optimal(modules: dict[str, ModuleType]):
    peers = modules["_peers"]
    assert error(peers, peers.plain_svd(peers.numpy(), WEIGHTS, RANK)) > 1.01
    assert 1 - 1e-6 < error(peers, peers.randomized_svd(WEIGHTS, ACTIVATIONS, RANK, 0)) < 1.01


def test_the_loop_does_what_verify_does(modules: dict[str, ModuleType]):
    violated, shrunk, broken = modules["_loop"].trials(20, 10, 0)
    assert violated == 0
    assert shrunk > 0 and broken > 0


def test_calls_take_turns(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modules["_measure"], "PAUSE", 0.0)
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    seconds = modules["_measure"].interleaved(calls, 3)
    assert "".join(made) == "abcbcacab"
    assert all(times.shape == (3,) and (times > 0).all() for times in seconds.values())


def test_a_quick_run_is_recorded_and_resumed(quick, capsys: pytest.CaptureFixture[str]):
    rows = quick("--only", "finish, exact")
    assert {row["peer"] for row in rows} >= {"SVD-LLM, NumPy", "COALA, NumPy"}
    for row in rows:
        assert set(row) >= ROW
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
        assert row["certified"] is True
        assert row["ours_error"] == pytest.approx(1, abs=1e-5)
        assert row["ours_error"] <= row["peer_error"] + 1e-6
        assert row["made"]["quick"] is True and row["made"]["versions"]["jax"]
    assert "0 of 1 cases" in capsys.readouterr().out
    assert quick("--only", "finish, exact") == rows
    assert "1 of 1 cases" in capsys.readouterr().out


@pytest.mark.slow
def test_an_error_is_small_or_announced(quick):
    ours = [row for row in quick("--only", "accuracy, ratio 1") if row["ours"]]
    assert {row["outliers"] for row in ours} == {1.0, 1e5}
    for row in ours:
        limit = 1.005 if row["ours"].startswith("Randomized") else 1.001
        assert row["certified_error"] is None or row["certified_error"] <= limit
        assert row["certified"] == (row["certified_seeds"] == row["seeds"])
    assert not all(row["certified"] for row in ours)


@pytest.mark.slow
def test_the_law_is_timed_after_it_is_compiled(quick):
    (row,) = quick("--only", "law")
    assert 0 < row["ours_s"] < row["first_s"] and row["processor_s"] > 0


def test_the_page_is_the_results(modules: dict[str, ModuleType]):
    rows = json.loads(RESULTS.read_text())
    assert all(set(row) >= ROW and not row["made"]["quick"] for row in rows)
    assert (FOLDER / "README.md").read_text() == modules["_report"].page(rows)
    certified = [row for row in rows if row.get("certified_error")]
    assert certified
    for row in certified:
        limit = 1.005 if row["ours"].startswith("Randomized") else 1.001
        assert row["certified_error"] <= limit


@pytest.mark.parametrize(
    "name", ["batches of compress", pytest.param("network of transfer", marks=pytest.mark.slow)]
)
def test_arguments_pass_few_modules_and_none_twice(name: str, modules: dict[str, ModuleType]):
    passages = modules["passages"]
    chains = passages.FOLLOWED[name]()
    assert any(len(chain) > 1 for chain in chains)
    assert [chain for chain in chains if not passages.is_short(chain)] == []
    assert not passages.is_short(("a", "b", "a"))
    assert not passages.is_short(tuple("abcdefg"))
