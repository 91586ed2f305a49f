"""Strategies of a user's own property test: run as a user does, outside the repository."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kinds
import lowrank_theory as lrt
from lowrank_theory import Setting, problems, strategies
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import NoiseThenRelu, ReluThenNoise
from tolerance import assert_close

ROOT = Path(__file__).parents[1]
NAMES = {
    name: value
    for module in (activations, noise, spectra, targets, problems)
    for name, value in vars(module).items()
    if isinstance(value, type)
}
LAWS = {
    "activations": [
        activations.Isotropic(),
        activations.GaussianRows(spectra.PowerLaw(2.0)),
        activations.FixedSpectrum(spectra.Given((2.0, 1.0, 0.0))),
        activations.LowRankPlusNoise(3, 5.0),
        activations.MassiveDirections(2, aligned=True),
        activations.ReluOutputs(5),
        activations.SerialCorrelation(-0.5, spectra.Exponential(0.5)),
        activations.RankDeficient(4),
    ],
    "target": [
        targets.ExactRank(),
        targets.ExactRank(spectra.Spiked(2, 4.0), 3.0),
        targets.ApproximateRank(scale=2.0),
        targets.ExactOutputRank(scale=7.0),
        targets.SchattenBall(0.7),
        targets.BoundedOutputs(2.0),
        targets.OpposedToTheData(),
    ],
    "noise": [
        noise.Gaussian(0.1),
        noise.Rademacher(0.5),
        noise.Uniform(0.5),
        noise.Laplace(0.5),
        noise.StudentT(0.5, 5.0),
        noise.Heteroskedastic(0.5, by_column=True),
        noise.Correlated(0.5),
        noise.SparseOutliers(0.5, magnitude=7.0),
        noise.QuantiserResidual(),
        noise.Opposing(1.0, rank=2),
    ],
    "mismatch": [activations.Identical(), activations.Perturbed(0.3)],
    "link": [problems.Linear(), ReluThenNoise(), NoiseThenRelu()],
}


def shown(setting: Setting) -> Setting:
    return eval(repr(setting), NAMES)


every_setting = st.builds(
    Setting,
    samples=st.integers(12, 15),
    inputs=st.integers(8, 10),
    outputs=st.integers(8, 10),
    rank=st.integers(1, 2),
    **{name: st.sampled_from(laws) for name, laws in LAWS.items()},
)


@given(every_setting)
def test_a_setting_is_shown_as_the_call_that_makes_it(setting):
    assert shown(setting) == setting
    assert "\n" not in repr(setting)
    for law in ("Isotropic()", "ExactRank()", "Identical()", "Linear()", "Gaussian(0.1)"):
        assert f"={law}" not in repr(setting)  # what is default


def test_a_setting_is_short():
    base = Setting(samples=40, inputs=12, outputs=9, rank=3)
    assert repr(base) == "Setting(samples=40, inputs=12, outputs=9, rank=3)"
    noisy = lrt.Setting(
        samples=40, inputs=12, outputs=9, rank=3, noise=noise.Heteroskedastic(0.2, by_column=True)
    )
    assert repr(noise.Gaussian(np.float64(0.3))) == "Gaussian(0.3)"
    assert repr(noisy).endswith("rank=3, noise=Heteroskedastic(0.2, by_column=True))")


@given(every_setting, strategies.seeds())
def test_every_law_draws_with_numpy(setting, seed):
    """Finite float64 numbers of the right shapes, decided by the seed."""
    problem, again = strategies.draw(setting, seed), strategies.draw(setting, seed)
    truth, observed = problem.truth, problem.observed
    assert observed.shape == (setting.inputs, setting.outputs)
    clean = np.asarray(truth.layer_inputs) @ np.asarray(truth.target_weights)
    wanted = {
        ReluThenNoise: lambda: np.maximum(clean, 0) + truth.noise,
        NoiseThenRelu: lambda: np.maximum(clean + truth.noise, 0),
    }.get(type(setting.link), lambda: clean + truth.noise)()
    outputs, rows = np.asarray(observed.outputs), np.asarray(observed.activations)
    assert outputs.dtype == np.float64
    assert_close(outputs, wanted, scale=float(np.linalg.norm(wanted)))
    np.testing.assert_array_equal(outputs, np.asarray(again.observed.outputs))
    if observed.weights is not None:
        left = rows.T @ (rows @ np.asarray(observed.weights) - outputs)
        assert np.linalg.norm(left) <= 1e-9 * np.linalg.norm(rows) * np.linalg.norm(outputs)


# --- outside the repository, without our conftest -------------------------------------------------


def as_a_user(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = folder / "test_of_a_user.py"
    file.write_text(textwrap.dedent(source))
    others = "CI", "JAX_", "XLA_", "HYPOTHESIS_", "PYTEST_"  # with CI, pytest prints all twice
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file.name],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", str(strategies.__doc__), re.MULTILINE | re.DOTALL)


def named(output: str) -> list[tuple[Setting, int]]:
    """The settings and seeds of the failing examples, read as a user would paste them."""
    text = re.sub(r"\s+", " ", re.sub(r"^E|# .*$", " ", output, flags=re.MULTILINE))
    found = []
    call_text = r"(?:problem|observed)=((?:draw|observe)\( ?Setting.*?seed=\d+,? ?\))"
    for call in re.findall(call_text, text):
        made = ast.parse(call, mode="eval").body
        assert isinstance(made, ast.Call)
        setting = eval(ast.unparse(made.args[0]), NAMES)
        found.append((setting, ast.literal_eval(made.keywords[0].value)))
    return found


@pytest.mark.slow
def test_drawing_compiles_nothing_and_a_false_bound_is_named(tmp_path):
    """Under default settings but for the deadline, of every strategy; nothing is compiled before
    the first bound.
    """
    done = as_a_user(
        tmp_path,
        """
        import hypothesis
        import jax
        import numpy as np
        from lowrank_theory import strategies

        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
        )

        @hypothesis.given(strategies.problems(), strategies.problems(strategies.AFTER_RELU))
        def test_problems(problem, rectified):
            assert np.isfinite(problem.truth.noise).all()
            assert rectified.observed.weights is None

        @hypothesis.given(strategies.observed_layers(), strategies.profiles())
        def test_layers(observed, profile):
            assert (np.diff(profile.values(5)) <= 0).all()
            assert np.isfinite(observed.weights).all()

        def test_nothing_was_compiled():
            assert compiled == []
            jax.jit(lambda: 2 * jax.numpy.ones(3))()
            assert compiled  # they are counted

        @hypothesis.given(strategies.problems())
        def test_false(problem):
            assert problem.rank < 3

        @hypothesis.given(strategies.observed_layers())
        def test_false_of_layers(observed):
            assert observed.weights.shape == (8, 6)
        """,
    )
    assert "2 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    (full, _), (wide, _) = named(done.stdout)
    assert full == strategies.REGIMES["full rank"]
    assert wide == strategies.REGIMES["more outputs than inputs"]


@pytest.mark.slow
def test_the_documented_example_finds_the_setting_where_it_is_false(tmp_path):
    (source,) = examples()
    done = as_a_user(tmp_path, source)
    assert "1 failed" in done.stdout, done.stdout + done.stderr
    ((setting, seed),) = named(done.stdout)
    assert setting == strategies.REGIMES["approximately low rank"]
    assert seed == 0
    assert f"draw({setting!r}, seed={seed})" in " ".join(str(strategies.__doc__).split())


@pytest.mark.slow
def test_the_documented_example_passes_where_it_is_true(tmp_path):
    (source,) = examples()
    mine = "{'mine': lrt.Setting(samples=20, inputs=8, outputs=6, rank=2)}"
    restricted = source.replace("strategies.problems()", f"strategies.problems({mine})")
    assert restricted != source
    done = as_a_user(tmp_path, restricted)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("regime", [*strategies.REGIMES.values(), *strategies.AFTER_RELU.values()])
def test_regimes_are_named_in_a_line(regime):
    assert len(repr(regime)) <= 120
    assert shown(regime) == regime


@settings(deadline=None)
@given(strategies.approximations())
def test_every_kind_of_approximation_is_drawn_as_the_laws_have_it(made):
    *stack, inputs, outputs = made.shape
    assert 1 <= inputs <= 9 and 1 <= outputs <= 8 and len(stack) <= 2
    assert made.storage.bytes > 0
    for leaf in jax.tree.leaves(made):
        assert isinstance(leaf, np.ndarray) and leaf.shape[: len(stack)] == tuple(stack)


def test_an_approximation_is_drawn_again_by_its_name():
    one, other = (strategies.approximation("4 bits", seed=3, stack=(2,)) for _ in range(2))
    for leaf, same in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(leaf, same)
    assert set(strategies.APPROXIMATIONS) == set(kinds.KINDS)
