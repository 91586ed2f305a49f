"""The fuzzer: its oracle, that a lie is found, its processes, and a slice of it."""

import dataclasses
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fuzz
import fuzz_oracle as oracle
import lowrank_theory as lrt
import troubled
from fuzz_draws import Kind, Verdict, judged
from fuzz_oracle import Layer, Lie, check_promises

RANDOM = np.random.default_rng(0)
W, X = RANDOM.standard_normal((6, 5)), RANDOM.standard_normal((14, 6))


# --- the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(14, 6), (6, 9), (5, 1)])
def test_singular_values_in_extended_precision(shape):
    scales = 10.0 ** -np.arange(shape[1])
    matrix = RANDOM.standard_normal(shape) * scales
    left, values, right = oracle.svd(matrix)
    assert np.max(np.abs((left * values) @ right - matrix)) <= 1e-18 * values[0]
    assert np.max(np.abs(right @ right.T - np.eye(len(values)))) <= 1e-18 * len(values)
    np.testing.assert_allclose(
        np.asarray(values, float), np.linalg.svd(matrix, compute_uv=False), rtol=1e-6
    )


def test_an_optimum_reaches_as_far_as_its_dtype():
    at_one = Layer.of(W, X).optimum(2)
    for power in (-1000, 1000):
        scaled = Layer.of(np.ldexp(W, power), np.ldexp(X, power)).optimum(2)
        assert np.ldexp(scaled, -2 * power) == pytest.approx(at_one, rel=1e-16)
    outputs = X @ W + RANDOM.standard_normal((14, 5))
    fitted = Layer.of(W, X, outputs=outputs)
    least = np.linalg.lstsq(X, outputs, rcond=None)[0]
    assert float(fitted.optimum(5)) == pytest.approx(np.linalg.norm(outputs - X @ least))


def test_the_certificate_of_losses_by_its_formula():
    losses = RANDOM.random(40) ** 4
    bound = lrt.certify_losses(losses, 0.05).bound
    assert oracle.order_free_bound(losses, 0.05) == pytest.approx(bound, rel=1e-12)


def promises(share: float = 0.0, **changes) -> bool:
    """Of the true optimum moved by a share of itself, under a certificate that is true without."""
    layer = Layer.of(W, X)
    vectors = np.linalg.svd(X @ W)[2][:2].T
    factors = [(W @ vectors) * (1 + share), vectors.T]
    optimum, norm = (float(each) for each in (layer.optimum(2), layer.norm))
    numbers = {"optimal_error": optimum, "excess_bound": 1e-13, "target_norm": norm, **changes}
    certificate = types.SimpleNamespace(finite=True, tolerance=1e-3)
    vars(certificate).update(numbers)
    allowed = certificate.tolerance * certificate.optimal_error
    certificate.certified = certificate.finite and certificate.excess_bound <= allowed
    broken = [np.where(factors[0] == factors[0].max(), np.nan, factors[0]), factors[1]]
    return check_promises(
        certificate,
        broken if math.isnan(share) else factors,
        error=layer.error(*factors),
        optimum=layer.optimum(2),
        norm=layer.norm,
        noise=layer.noise(*factors),
    )


def test_true_promises_are_kept():
    assert promises()
    assert not promises(excess_bound=math.inf)
    assert not promises(1.0, excess_bound=math.inf)
    assert not promises(math.nan, finite=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1e-3}, "exceeds the optimum"),
        ({"share": 1e-6}, "exceeds the optimum"),  # beside what is certified, of 0.1 %
        ({"share": math.nan}, "`finite` is true"),
        ({"excess_bound": -1e-9}, "exceeds the optimum"),
        ({"optimal_error": 9.0}, "`optimal_error` is 9"),
        ({"optimal_error": math.inf}, "not finite"),
        ({"target_norm": 1e9}, "`target_norm` is 1e"),
    ],
    ids=str,
)
def test_false_promises_are_lies(changes, message):
    with pytest.raises(Lie, match=message):
        promises(**changes)


# --- verdicts -------------------------------------------------------------------------------------


def verdict(call) -> tuple[Verdict, str]:
    return judged(Kind("one", 1.0, call), np.random.default_rng(0))


def test_a_refusal_is_in_the_librarys_own_words():
    assert verdict(lambda _: lrt.Calibration.empty(0))[0] is Verdict.REFUSED
    assert verdict(lambda _: lrt.load_calibration("nowhere"))[0] is Verdict.REFUSED
    found, why = verdict(lambda _: np.zeros(2).reshape(3))
    assert found is Verdict.DEFECT and why.startswith("ValueError: cannot reshape")
    assert verdict(lambda _: {}["x"])[0] is Verdict.DEFECT


# --- processes ------------------------------------------------------------------------------------


def test_a_hang_and_a_crash_are_defects_and_the_run_goes_on():
    found = {result.index: result for result in fuzz.run(0, range(4), 1, 0.5, troubled.examine)}
    assert [found[index].verdict for index in range(4)] == ["right", "defect", "defect", "right"]
    assert "no end within" in found[1].why and "exit code 3" in found[2].why


def test_a_run_ends_where_no_process_can_work(monkeypatch):
    monkeypatch.setattr(fuzz, "STILLBORN", 2)
    with pytest.raises(RuntimeError, match="No process can work: the process died"):
        list(fuzz.run(0, range(9), 2, 0.5, troubled.die))


def test_results_are_taken_up_by_a_later_run(tmp_path, capsys):
    kept = [fuzz.Result(index, "tame", "right", "", 0.1) for index in range(3)]
    lines = [json.dumps(vars(result)) for result in kept]
    file = tmp_path / "seed-7.jsonl"
    file.write_text("\n".join([*lines, lines[0][:9]]))
    assert list(fuzz.read(file).values()) == kept
    arguments = ["--seed", "7", "--count", "3", "--out", str(tmp_path)]
    assert fuzz.main(arguments) == 0
    assert "3 of 3 results are in" in capsys.readouterr().out
    bad = dataclasses.replace(kept[1], verdict="defect", why="a lie")
    file.write_text(f"{lines[0]}\n{lines[2]}\n{json.dumps(vars(bad))}\n")
    assert fuzz.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "tame: a lie" in printed and "python tests/fuzzing/fuzz.py --seed 7 --only 1" in printed


# --- a slice --------------------------------------------------------------------------------------

CHEAP = ("foreign", "calibration of", "files", "certify_losses", "unit", "hostile", "keys",
         "factors", "allocate", "recover TruncatedSVD")  # fmt: skip


def test_a_slice_has_no_defect():
    """In a process without the hook that checks types, which would object before the library."""
    chosen: dict[str, list[int]] = {}
    for index in range(400):
        kind, _ = fuzz.kind_of(0, index)
        if kind.name.startswith(CHEAP):
            chosen.setdefault(kind.name, []).append(index)
    indices = [str(index) for each in chosen.values() for index in each[:1]]
    done = subprocess.run(
        [sys.executable, "fuzz.py", "--only", *indices],
        cwd=Path(__file__).parent,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count(": right") >= len(indices) // 3
