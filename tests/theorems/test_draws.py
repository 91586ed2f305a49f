"""Every setting is drawn from either kind of key, by one law."""

from typing import Any

import equinox as eqx
import jax
import jax.extend
import numpy as np
import pytest

from lowrank_theory._random import chi, integers, normal_by_jax, signs
from lowrank_theory.problems import AbstractParts, Setting
from lowrank_theory.theorems import STATEMENTS
from lowrank_theory.theorems._sketches import SketchSetting
from lowrank_theory.verification import sampling

SETTINGS = [
    setting for each in STATEMENTS.values() for setting in (*each.regimes.values(), each.control)
]
KINDS = {type(setting).__name__: setting for setting in reversed(SETTINGS)}  # the first of each
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))
DRAWS = 200


def draw_of(setting: Any) -> Any:
    """What verification calls."""
    return getattr(setting, "draw_parts", setting.draw)


def outline(tree: Any) -> tuple[Any, list[Any]]:
    leaves = jax.tree.leaves(tree)
    return jax.tree.structure(tree), [(np.shape(leaf), np.result_type(leaf)) for leaf in leaves]


@every_kind
def test_a_generator_draws_what_a_key_draws_and_computes_nothing_with_jax(kind, monkeypatch):
    draw = draw_of(KINDS[kind])

    def refused(primitive: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{primitive} of JAX was computed")

    with jax.disable_jit(), monkeypatch.context() as patch:
        patch.setattr(jax.extend.core.Primitive, "bind", refused)
        drawn = draw(key=np.random.default_rng(0))
    kinds = np.ndarray | np.generic | float
    assert all(isinstance(leaf, kinds) for leaf in jax.tree.leaves(drawn))
    with jax.enable_x64(True):
        traced = eqx.filter_eval_shape(lambda key: draw(key=key), jax.random.key(0))
        assert outline(drawn) == outline(traced)
        if isinstance(drawn, AbstractParts):
            whole = eqx.filter_eval_shape(drawn.instance)
            setting: Any = KINDS[kind]
            by_jax = eqx.filter_eval_shape(lambda key: setting.draw(key=key), jax.random.key(0))
            assert outline(whole) == outline(by_jax)


def seen(drawn: Any, scales: list[np.ndarray]) -> np.ndarray:
    """Bounded numbers of each leaf, one row for each draw: of entries, of all, of neighbours."""
    columns = []
    for leaf, scale in zip(jax.tree.leaves(drawn), scales, strict=True):
        flat = np.asarray(leaf, float).reshape(DRAWS, -1)
        flat = np.where(np.isfinite(flat), flat, 0)
        entries = np.tanh(flat / scale)
        columns += [
            np.mean(entries, 1),
            np.mean(entries**2, 1),
            np.mean(entries * np.roll(entries, 1, 1), 1),
            np.tanh(np.mean(np.abs(flat), 1) / scale),
            np.tanh(np.max(np.abs(flat), 1) / scale / 4),
            entries[:, 0] * entries[:, -1],
        ]
    return np.stack(columns, 1)


@pytest.mark.thinned(6)
@every_kind
def test_both_draw_of_one_law(kind):
    draw = draw_of(KINDS[kind])
    host = [draw(key=generator) for generator in np.random.default_rng(1).spawn(DRAWS)]
    host = jax.tree.map(lambda *leaves: np.stack(leaves), *host)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), DRAWS)
        by_jax = jax.jit(lambda keys: jax.lax.map(lambda key: draw(key=key), keys))(keys)
    sizes = [np.abs(np.asarray(leaf, float)) for leaf in jax.tree.leaves(by_jax)]
    scales = [np.median(size) if np.median(size) > 0 else np.ones(()) for size in sizes]
    one, other = (seen(drawn, scales) for drawn in (host, by_jax))
    deviation = np.sqrt((np.var(one, 0) + np.var(other, 0)) / (DRAWS - 1))
    assert np.all(np.abs(np.mean(one, 0) - np.mean(other, 0)) <= 5 * deviation + 1e-9)


@pytest.mark.parametrize("key", [jax.random.key(3), np.random.default_rng(3)])
def test_moments_of_the_numbers(key):
    count, degrees = 20_000, np.array([0.5, 3.0, 40.0])
    with jax.enable_x64(True):
        drawn = [signs(key, (count,)), normal_by_jax(key, (count,)), integers(key, (count,), 4)]
        lengths = chi(key, np.broadcast_to(degrees, (count, 3)))
    for mean, numbers in zip((0, 0, 1.5), map(np.asarray, drawn), strict=True):
        error = np.std(numbers) / count**0.5
        assert abs(np.mean(numbers) - mean) <= 5 * error
    assert set(np.asarray(drawn[2]).tolist()) == {0, 1, 2, 3}
    off = np.mean(np.asarray(lengths) ** 2, 0) - degrees
    assert np.all(np.abs(off) <= 5 * np.sqrt(2 * degrees / count))


def test_settings_of_jax_arrays_are_drawn_with_numpy():
    values = np.arange(5.0, 0, -1)
    with jax.enable_x64(True):
        settings = SketchSetting(values, 2, 1), SketchSetting(jax.numpy.asarray(values), 2, 1)
    one, other = (setting.draw(key=np.random.default_rng(0)) for setting in settings)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert isinstance(right, np.ndarray)
        np.testing.assert_array_equal(left, right)


class Own(eqx.Module):
    """A setting that is not of the package."""

    within: Any


class Holding(Setting):
    """Neither is this."""


def test_what_is_not_of_the_package_is_not_taken_for_it():
    assert all(sampling._is_ours(setting) for setting in SETTINGS)
    ours = Setting(samples=3, inputs=2, outputs=2, rank=1)
    assert not sampling._is_ours(Own(ours))
    assert not sampling._is_ours(Holding(samples=3, inputs=2, outputs=2, rank=1))
    held = eqx.tree_at(lambda setting: setting.rank, ours, Own(1))
    assert not sampling._is_ours(held) and not sampling._is_ours(object())
