"""Laws of subspaces: lines and points, what a schedule draws, and training that goes on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_theory.approximations import LowRank
from lowrank_theory.data_constrained import (
    Fixed,
    KeepAll,
    Pruned,
    Sampled,
    Sandwich,
    Subspace,
    Together,
    Truncated,
    train,
)
from routes import normal

ONE = {"w": normal(0, 5, 3), "b": normal(1, 3)}
OTHER = {"w": normal(2, 5, 3), "b": normal(3, 3)}
ROWS = normal(4, 40, 5)
TRUTH = ROWS @ normal(5, 5, 3)
PRUNED = Pruned(("['w']",))


def loss(parameters, batch):
    rows, wanted = batch
    return jnp.mean((rows @ parameters["w"] + parameters["b"] - wanted) ** 2)


def batches(key):
    order = np.asarray(jax.random.permutation(key, len(ROWS)))
    for rows in order.reshape(4, 10):
        yield ROWS[rows], TRUTH[rows]


def loss_and_mean(parameters, batch, moment):
    """Beside the loss, the mean row of a batch, how many steps are done, and the level."""
    seen = {"mean": batch[0].mean(0), "moment": jnp.array([moment.step, moment.levels[0]])}
    return loss(parameters, batch), seen


NOTHING = {"mean": np.zeros(5), "moment": np.zeros(2)}


def trained(subspace=None, compressor: Any = PRUNED, *, schedule=None, epochs=3, **options):
    return train(
        Subspace.line(ONE, OTHER) if subspace is None else subspace,
        options.pop("loss", loss),
        compressor,
        options.pop("batches", batches),
        schedule=Sampled(warm_up=4) if schedule is None else schedule,
        optimiser=optax.sgd(options.pop("rate", 0.05), momentum=0.9),
        epochs=epochs,
        key=jax.random.key(0),
        **options,
    )


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, theirs in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def close(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, theirs in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_line_has_its_ends_and_a_point_is_one():
    line = Subspace.line(ONE, OTHER)
    same(line.at(0.0), ONE)
    same(line.at(1.0), OTHER)
    close(line.at(0.25), jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, ONE, OTHER))
    point = Subspace.point(ONE)
    for alpha in (0.0, 0.3, 1.0):
        same(point.at(alpha), ONE)
        close(Subspace.line(ONE, ONE).at(alpha), ONE)
    norms = Subspace.line(ONE, OTHER, lambda path: "b" in path).at(0.0)
    same(norms, {"w": OTHER["w"], "b": ONE["b"]})


def test_the_cosine_is_over_all_kernels_at_once():
    expected = np.vdot(ONE["w"], OTHER["w"]) ** 2 / (
        np.vdot(ONE["w"], ONE["w"]) * np.vdot(OTHER["w"], OTHER["w"])
    )
    assert np.isclose(Subspace.line(ONE, OTHER).squared_cosine, expected)
    shifts = Subspace.line(ONE, OTHER, lambda path: "b" in path).squared_cosine
    unit = [each["b"] / np.linalg.norm(each["b"]) for each in (ONE, OTHER)]
    assert np.isclose(shifts, np.vdot(*unit) ** 2)
    assert Subspace.point(ONE).squared_cosine == 0
    assert np.isclose(Subspace.line(ONE, ONE).squared_cosine, 1)


def drawn(schedule, step, count=2_000, paths=1):
    keys = jax.random.split(jax.random.key(1), count)
    draw = jax.jit(jax.vmap(lambda key: schedule.draw(step, paths, key=key)))
    return [np.asarray(each) for each in draw(keys)]


def test_schedules_draw_what_they_say():
    alphas, levels = drawn(Sampled(lowest=0.025, warm_up=100), 25)
    np.testing.assert_allclose(levels, alphas + (1 - alphas) * 0.75, rtol=1e-5)
    ends = [np.isclose(alphas, end).mean() for end in (0.025, 1.0)]
    np.testing.assert_allclose(ends, 0.25, atol=0.04)  # four standard errors of 2,000 draws
    assert alphas.min() >= 0.025 and alphas.max() <= 1
    abrupt = Sampled(ends=0.0, warm_up=100, gradual=False)
    assert np.all(drawn(abrupt, 99)[1] == 1)
    alphas, levels = drawn(abrupt, 100)
    np.testing.assert_allclose(alphas, levels, rtol=1e-6)
    assert np.isclose(alphas.mean(), 0.5125, atol=0.03)
    alphas, _ = drawn(Sampled(values=6), 0)
    np.testing.assert_allclose(np.unique(alphas), np.arange(1, 7) / 6, rtol=1e-6)
    alphas, levels = drawn(Sandwich(), 0)
    assert alphas.shape == levels.shape == (2_000, 4)
    assert np.all(alphas[:, :2] == [0, 1])
    alphas, levels = drawn(Together((0.0, 0.3, 1.0)), 0)
    np.testing.assert_allclose(alphas, np.broadcast_to([0, 0.3, 1], (2_000, 3)), rtol=1e-6)
    np.testing.assert_array_equal(alphas, levels)
    for step, level in ((0, 1.0), (50, 0.6), (100, 0.2), (500, 0.2)):
        np.testing.assert_allclose(drawn(Fixed(0.2, warm_up=100), step, 3)[1], level, rtol=1e-6)


def test_levels_may_be_drawn_for_each_path():
    assert drawn(Sampled(values=6, apart=True), 0, paths=5)[1].shape == (2_000, 1, 5)
    one = drawn(Sampled(values=6), 0, paths=5)[1]
    assert one.shape == (2_000, 1)


def test_training_without_compression_is_training():
    """A point at level one takes the steps of the optimiser, written out."""
    found = trained(Subspace.point(ONE), KeepAll(), schedule=Fixed(1.0), epochs=1)
    optimiser = optax.sgd(0.05, momentum=0.9)
    parameters, state = ONE, optimiser.init(ONE)
    for batch in batches(jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]):
        updates, state = optimiser.update(jax.grad(loss)(parameters, batch), state)
        parameters = optax.apply_updates(parameters, updates)
    close(found.at(1.0), parameters)


def test_ends_that_are_one_stay_one_as_the_point_at_half_the_rate():
    """Each end of a line gets its share of the gradient: (1 - alpha) and alpha of it."""
    schedule = Fixed(0.5)
    line = trained(Subspace.line(ONE, ONE), schedule=schedule, rate=0.1, apart=0.0)
    point = trained(Subspace.point(ONE), schedule=schedule, rate=0.05)
    close(line.subspace.start, line.subspace.end)
    close(line.at(0.5), point.at(0.5))


def test_every_prefix_of_factors_is_trained():
    """The first rank errs far less than that of factors which are trained whole."""
    start = {"w": LowRank(0.3 * normal(6, 5, 3), 0.3 * normal(7, 3, 3)), "b": normal(8, 3)}
    losses = []
    for schedule in (Sampled(lowest=1 / 3), Fixed(1.0)):
        run = trained(
            Subspace.point(start), Truncated(("['w']",)), schedule=schedule, epochs=60, rate=0.02
        )
        losses.append([float(loss(run.at(rank / 3), (ROWS, TRUTH))) for rank in (1, 2, 3)])
    sampled, whole = losses
    assert sampled[0] > sampled[1] > sampled[2]
    assert sampled[0] < whole[0] / 1.2


def test_averages_move_after_each_draw_and_change_no_step():
    """An oracle in NumPy: two draws in each step, each of which sees the mean of the batch."""
    schedule = Together((0.5, 1.0))
    found = trained(schedule=schedule, epochs=2, loss=loss_and_mean, averages=NOTHING, momentum=0.3)
    same(found.subspace, trained(schedule=schedule, epochs=2).subspace)
    expected, step = NOTHING, 0
    for epoch in range(2):
        order = jax.random.split(jax.random.fold_in(jax.random.key(0), epoch))[0]
        for rows, _ in batches(order):
            for level in (0.5, 1.0):
                seen = {"mean": rows.mean(0), "moment": np.array([step, level])}
                expected = {k: 0.7 * expected[k] + 0.3 * seen[k] for k in seen}
            step += 1
    for name, average in expected.items():
        np.testing.assert_allclose(found.averages[name], average, rtol=1e-5, atol=1e-6)
    assert trained(epochs=0).averages is None


class StopError(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"loss": loss_and_mean, "averages": NOTHING}])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, options):
    whole = trained(**options)

    def stop(_, done, total):
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        trained(folder=tmp_path, progress=stop, **options)
    (file,) = tmp_path.iterdir()
    seen = []
    resumed = [
        trained(folder=tmp_path, progress=lambda _, done, __: seen.append(done), **options)
        for _ in range(2)
    ]
    assert seen == [3]
    for run in resumed:
        same(run.subspace, whole.subspace)
        same(run.averages, whole.averages)
        np.testing.assert_array_equal(run.losses, whole.losses)
    trained(folder=tmp_path, epochs=1, **options)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="is corrupt .*: computed anew"):
        same(trained(folder=tmp_path, **options).subspace, whole.subspace)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_nothing_is_outside_the_ends(alpha):
    with pytest.raises(ValueError, match=r"`alpha` must lie from 0, the compressed end, to 1"):
        Subspace.line(ONE, OTHER).at(alpha)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="structures or shapes differ"):
        Subspace.line(ONE, {"w": ONE["w"]})
    with pytest.raises(ValueError, match="`select` selects no leaf"):
        Subspace.line(ONE, OTHER, lambda _: False)
    with pytest.raises(ValueError, match="`batches` is empty"):
        trained(batches=lambda _: [])
    with pytest.raises(ValueError, match=r"The loss of step \d+ is (nan|inf): take smaller steps"):
        trained(rate=1e30)
    with pytest.raises(ValueError, match="`apart` must"):
        trained(apart=-1.0)
    with pytest.raises(ValueError, match="`lowest` must"):
        Sampled(lowest=0.0)
    with pytest.raises(ValueError, match="`loss` must give what it saw as a tree like `averages`"):
        trained(loss=loss_and_mean, averages={"mean": np.zeros(5)})
    with pytest.raises(ValueError, match="`momentum` must"):
        trained(loss=loss_and_mean, averages=NOTHING, momentum=1.5)


@pytest.mark.parametrize("levels", [(), (0.5, 1.1), (-0.1,), (float("nan"),)])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="`levels` must be one or more numbers from 0 to 1; got"):
        Together(levels)
