"""`attack` reaches sharp bounds, breaks false ones, and its witnesses can be replayed."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray

from lowrank_theory import cli, theorems
from lowrank_theory.cli import _options
from lowrank_theory.problems import Observed, Problem
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems import STATEMENTS
from lowrank_theory.theorems._theorem import AbstractAdversary, AbstractStatement, Hypothesis
from lowrank_theory.theorems.best_possible import Optimality
from lowrank_theory.theorems.planted_rank import AnyNoise
from lowrank_theory.verification import Finding, Witness, attack
from lowrank_theory.verification.attack import reload, replay
from tolerance import approx

pytestmark = pytest.mark.thinned(6)

WITNESSES = Path(__file__).parents[2] / "figures" / "attack"
ATTACKABLE = {
    name: statement for name, statement in STATEMENTS.items() if statement.adversary is not None
}


def key(seed: int = 0) -> Any:
    return jax.random.key(seed)


class Diagonal(AbstractAdversary):
    """Diagonal targets of rank one, and diagonal noise."""

    def start(self, *, key: PRNGKeyArray) -> Array:
        return jax.random.normal(key, (3,), float)

    def play(self, free: Array) -> tuple[Problem, None]:
        target = jnp.diag(jnp.stack([free[0], 0.0 * free[0]]))
        observed = Observed(activations=jnp.eye(2), outputs=target + jnp.diag(free[1:]))
        return Problem.stated(observed, target, 1), None


class Shrunk(AbstractStatement):
    """`planted_rank.any_noise` with its constant times `factor`."""

    factor: float
    kind, needs = AnyNoise.kind, AnyNoise.needs
    regimes, control = AnyNoise.regimes, AnyNoise.control
    adversary, sharp = Diagonal(), True

    def hypotheses(self, instance: Any) -> tuple[Hypothesis, ...]:
        return AnyNoise().hypotheses(instance)

    def estimate(self, instance: Any) -> LowRank:
        return AnyNoise().estimate(instance)

    def broken_estimate(self, instance: Any) -> Array:
        return AnyNoise().broken_estimate(instance)

    def formula(self, instance: Any, estimate: Any) -> Array:
        return self.factor * AnyNoise().formula(instance, estimate)

    def loss(self, instance: Any, estimate: Any) -> Array:
        return AnyNoise().loss(instance, estimate)

    def magnitude(self, instance: Any) -> Array:
        return AnyNoise().magnitude(instance)


@pytest.mark.parametrize("name", ATTACKABLE)
def test_adversaries_start_within_the_bound(name):
    statement = ATTACKABLE[name]
    assert statement.adversary is not None
    with jax.enable_x64(True):
        free = statement.adversary.start(key=key(1))
    assert 0 <= replay(statement, free) <= 1


@pytest.fixture(scope="module")
def witness() -> Witness:
    return attack(Shrunk(1.0), key=key(), restarts=4, steps=300)


def test_the_attack_reaches_a_sharp_bound(witness: Witness):
    assert 0.99 <= witness.ratio <= 1
    assert witness.finding is Finding.REACHED
    target, *noise = sorted(np.abs(witness.free))[::-1]
    assert target / noise[0] == pytest.approx(2, rel=0.05)


def test_the_attack_is_a_function_of_its_arguments(witness: Witness):
    again = attack(Shrunk(1.0), key=key(), restarts=4, steps=300)
    np.testing.assert_array_equal(again.free, witness.free)
    assert again.ratio == witness.ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "finding"), [(0.95, Finding.BROKEN), (1.1, Finding.NOT_REACHED)]
)
def test_the_attack_tells_a_wrong_constant(factor: float, finding: Finding):
    assert attack(Shrunk(factor), key=key(), restarts=4, steps=300).finding is finding


def test_a_witness_comes_back_exactly(witness: Witness, tmp_path: Path):
    file = tmp_path / "witness.json"
    witness.save(file)
    free = reload(Shrunk(1.0), file)
    np.testing.assert_array_equal(free, witness.free)
    assert replay(Shrunk(1.0), free) == witness.ratio
    assert replay(Shrunk(2.0), free) == approx(witness.ratio / 2)


def test_a_choice_outside_the_hypotheses_is_worth_nothing():
    class Outside(AnyNoise):
        adversary = Diagonal()

        def hypotheses(self, instance: Any) -> tuple[Hypothesis, ...]:
            return (Hypothesis("never", math.nan),)

    assert replay(Outside(), np.ones(3)) == 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "[" * 100_000,
        '{"free": [[1, 2]]}',
        '{"free": [["x"]]}',
        '{"name": "Shrunk", "free": [[1, 2, NaN]]}',
        '{"name": "another", "free": [[1, 2, 3]]}',
    ],
)
def test_a_corrupt_or_foreign_witness_is_refused(content: str, tmp_path: Path):
    file = tmp_path / "witness.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"witness.*Run the attack again"):
        reload(Shrunk(1.0), file)


def test_what_cannot_be_attacked_is_refused():
    with pytest.raises(ValueError, match=r"has no adversary.*sure core"):
        attack(theorems.planted_rank.gaussian, key=key())
    with pytest.raises(ValueError, match="Attack one statement of a theorem: planted_rank"):
        attack(theorems.planted_rank, key=key())
    with pytest.raises(ValueError, match="`restarts` must be an integer >= 1; got 0"):
        attack(Shrunk(1.0), key=key(), restarts=0)
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1; got 0"):
        attack(Shrunk(1.0), key=key(), steps=0)


def test_the_command_prints_its_findings_and_writes_its_witnesses(tmp_path, monkeypatch, capsys):
    quick = functools.partial(attack, restarts=4, steps=300)
    monkeypatch.setattr(cli.attack, "attack", quick)
    statements = {"sharp.one": Shrunk(1.0), "wrong.one": Shrunk(0.95)}
    monkeypatch.setattr(_options, "STATEMENTS", statements)
    file, folder = tmp_path / "table.json", tmp_path / "witnesses"
    assert cli.main(["attack", "--json", str(file), "--out", str(folder)]) == 1
    rows = json.loads(file.read_text())
    assert [set(row) for row in rows] == 2 * [{"name", "sharp", "best_ratio", "seconds"}]
    assert rows[0]["best_ratio"] <= 1 < rows[1]["best_ratio"]
    for row, (name, statement) in zip(rows, statements.items(), strict=True):
        free = reload(statement, folder / f"{name}.json")
        assert replay(statement, free) == approx(row["best_ratio"])
    shown = capsys.readouterr().out
    assert "sharp, as said" in shown and "broken" in shown
    assert cli.main(["attack", "--only", "sharp.one"]) == 0
    monkeypatch.setattr(_options, "STATEMENTS", {"loose.one": Shrunk(1.1)})
    assert cli.main(["attack"]) == 3
    monkeypatch.setattr(_options, "STATEMENTS", {"none.one": theorems.planted_rank.gaussian})
    assert cli.main(["attack"]) == 2
    assert "none of these can be attacked" in capsys.readouterr().err


def test_a_lower_bound_has_its_ratio_inverted():
    class Competitor(AbstractAdversary):
        def start(self, *, key: PRNGKeyArray) -> Array:
            return jax.random.normal(key, (3, 3), float)

        def play(self, free: Array) -> tuple[Problem, None]:
            target = jnp.diag(jnp.array([1.0, 0.0, 0.0]))
            return Problem.stated(Observed(activations=jnp.eye(3), outputs=free), target, 1), None

    class Attackable(Optimality):
        adversary = Competitor()

    # The best fit of diag(2, 1, 0) leaves 1; five sweeps from the right rows find it.
    assert replay(Attackable(), np.diag([2.0, 1.0, 0.0])) == approx(1, condition=100)
    # From rows orthogonal to the best ones they never do: it leaves 2 where 1 is possible.
    assert replay(Attackable(), np.diag([1.0, 2.0, 0.0])) == approx(0.5, condition=100)


# --- the committed witnesses ----------------------------------------------------------------------


def test_every_attackable_statement_has_its_witness():
    assert {file.stem for file in WITNESSES.glob("*.json")} - {"table"} == set(ATTACKABLE)
    table = {row["name"]: row for row in json.loads((WITNESSES / "table.json").read_text())}
    assert set(table) == set(ATTACKABLE)


@pytest.mark.parametrize("name", ATTACKABLE)
def test_the_witness_shows_what_the_table_says(name: str):
    statement = ATTACKABLE[name]
    file = WITNESSES / f"{name}.json"
    ratio = replay(statement, reload(statement, file))
    assert ratio == pytest.approx(json.loads(file.read_text())["ratio"], rel=1e-6)
    assert ratio <= 1
    if statement.sharp:
        assert ratio >= 0.99
