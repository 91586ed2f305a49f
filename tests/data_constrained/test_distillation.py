"""A student learns what the teacher says: the same from any labels, and however often stopped."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unhooked
from lowrank_theory.data_constrained import Shuffled, agreement, distill, kl_divergence
from lowrank_theory.networks import Bytes, Parameters, compress
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import TruncatedSVD
from routes import normal
from small_networks import mlp, perceptron

KEY = jax.random.key(5)
ROWS = normal(0, 40, 6)
RATE = optax.sgd(0.1)


def network(seed, *widths):
    sides = itertools.pairwise(widths)
    return perceptron, [
        {"w": normal(seed + k, *side) / side[0] ** 0.5, "b": normal(seed + 50 + k, side[1])}
        for k, side in enumerate(sides)
    ]


TEACHER, STUDENT = network(10, 6, 9, 4), network(30, 6, 3, 4)


def trained(**settings):
    given = {
        "teacher": TEACHER, "student": STUDENT, "batches": Shuffled(ROWS, 8),
        "optimiser": optax.adam(1e-2), "epochs": 3, "key": KEY,
    }  # fmt: skip
    return distill(**(given | settings))


def assert_same(one, other):
    """Bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


# --- what is learned from -------------------------------------------------------------------------


def test_labels_are_not_read():
    def of_images(function):
        return lambda parameters, batch: function(parameters, batch["images"])

    def with_labels(labels):
        return trained(
            teacher=(of_images(TEACHER[0]), TEACHER[1]),
            student=(of_images(STUDENT[0]), STUDENT[1]),
            batches=Shuffled({"images": ROWS, "labels": labels}, 8),
        )

    true = np.argmax(perceptron(TEACHER[1], ROWS), axis=1)
    found = with_labels(true)
    random = np.random.default_rng(0).integers(0, 4, 40)
    assert_same(found.parameters, with_labels(random).parameters)
    assert differ(found.parameters, STUDENT[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_step_is_that_of_the_formula(temperature):
    teacher = TEACHER[0], TEACHER[1]
    weights = normal(3, 6, 4)
    found = trained(
        student=(lambda w, x: x @ w, weights), batches=[ROWS], optimiser=RATE, epochs=1,
        temperature=temperature,
    )  # fmt: skip

    def softmax(logits):
        powers = np.exp(np.asarray(logits, float) / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    gap = softmax(ROWS @ weights) - softmax(perceptron(teacher[1], ROWS))
    step = 0.1 * temperature * ROWS.T @ gap / len(ROWS)
    np.testing.assert_allclose(found.parameters, weights - step, atol=1e-6)


def test_a_student_that_is_the_teacher_stays_so_on_every_view():
    def augment(batch, key):
        return batch + jax.random.normal(key, batch.shape)

    found = trained(student=TEACHER, optimiser=RATE, augment=augment)
    np.testing.assert_allclose(found.losses, 0, atol=1e-9)
    assert np.all(found.agreements == 1)
    for one, other in zip(*map(jax.tree.leaves, (found.parameters, TEACHER[1])), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_losses_and_agreements_are_those_before_each_step_on_its_view():
    def augment(batch, key):
        return batch + jax.random.normal(key, batch.shape)

    found = trained(batches=[ROWS], augment=augment, epochs=1)
    key = jax.random.fold_in(jax.random.split(jax.random.fold_in(KEY, 0))[1], 0)
    said = agreement(TEACHER, STUDENT, [augment(ROWS, key)])
    np.testing.assert_allclose(found.losses, [said.divergence], rtol=1e-5)
    assert found.agreements == [said.share]


def test_the_normalisation_of_the_teacher_is_in_its_function():
    def of_batch(parameters, x):
        return perceptron(parameters, (x - x.mean(axis=0)) / x.std(axis=0))

    def kept(parameters, x):
        return perceptron(parameters[0], (x - parameters[1]) / parameters[2])

    teachers = (of_batch, TEACHER[1]), (kept, (TEACHER[1], normal(1, 6), np.full(6, 2.0, "f4")))
    for function, parameters in teachers:
        found = trained(teacher=(function, parameters), batches=[ROWS[:9], ROWS[9:]], epochs=1)
        answers = function(parameters, ROWS[:9]), perceptron(STUDENT[1], ROWS[:9])
        expected = kl_divergence(*map(jnp.asarray, answers)).mean()
        np.testing.assert_allclose(found.losses[0], expected, rtol=1e-5)


def test_the_batches_of_an_epoch_are_all_rows_in_an_order_of_its_own():
    batches = Shuffled({"row": np.arange(40), "same": np.arange(40)}, 8)
    orders = []
    for key in jax.random.split(KEY, 2):
        epoch = list(batches(key))
        assert len(epoch) == len(batches) == 5
        assert all(np.array_equal(batch["row"], batch["same"]) for batch in epoch)
        orders.append(np.concatenate([batch["row"] for batch in epoch]))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert differ(*orders)
    assert len(Shuffled(ROWS, 39)) == 1
    fewer = Shuffled(np.arange(40), 8, count=2)
    assert len(fewer) == 2
    assert_same(list(fewer(KEY)), list(Shuffled(np.arange(40), 8)(KEY))[:2])


# --- who learns -----------------------------------------------------------------------------------


def test_factors_learn_and_a_compressed_student_can_be_kept(tmp_path):
    dense = mlp()
    teacher = dense.function, dense.parameters
    compressed = compress(*teacher, dense.batches, Parameters(0.5), method=TruncatedSVD())
    found = trained(
        teacher=teacher, student=(compressed.function, compressed.parameters),
        batches=dense.batches, epochs=30,
    )  # fmt: skip
    before, after = (
        agreement(teacher, (compressed.function, each), dense.batches).divergence
        for each in (compressed.parameters, found.parameters)
    )
    assert after < before / 2
    assert jax.tree.structure(found.parameters) == jax.tree.structure(compressed.parameters)


def test_codes_stay_and_their_steps_learn():
    dense = mlp()
    compressed = compress(
        dense.function, dense.parameters, dense.batches, Bytes(0.2), method=RoundToNearest()
    )
    found = trained(
        teacher=(dense.function, dense.parameters), batches=dense.batches,
        student=(compressed.function, compressed.parameters), epochs=20,
    )  # fmt: skip
    assert found.losses[-2:].sum() < found.losses[:2].sum()
    pairs = zip(*map(jax.tree.leaves, (compressed.parameters, found.parameters)), strict=True)
    kinds = {(np.asarray(a).dtype.kind, differ(a, b)) for a, b in pairs}
    assert ("u", False) in kinds and ("f", True) in kinds and ("u", True) not in kinds


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.sgd(optax.linear_schedule(0.1, 0.01, 15), 0.9, nesterov=True),
        optax.adamw(1e-2),
        optax.polyak_sgd(0.1),
        optax.lbfgs(),
    ],
    ids=["momentum", "adamw", "polyak", "lbfgs"],
)
def test_any_optimiser_will_do(optimiser):
    found = trained(optimiser=optimiser)
    assert found.losses[-5:].mean() < found.losses[:5].mean()


def test_what_the_optimiser_keeps_stays():
    kept = optax.masked(optax.set_to_zero(), [{"w": False, "b": True}] * 2)
    found = trained(optimiser=optax.chain(optax.adam(1e-2), kept))
    for before, after in zip(STUDENT[1], found.parameters, strict=True):
        assert_same(before["b"], after["b"])
        assert differ(before["w"], after["w"])


# --- stopped and gone on with ---------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stopping_at(step):
    def progress(name, done, total):
        assert name == "distillation"
        assert total == 15
        if done == step:
            raise StoppedError

    return progress


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path):
    def augment(batch, key):
        return batch + 0.1 * jax.random.normal(key, batch.shape)

    whole = trained(augment=augment)
    for step in (3, 5, 14):
        with pytest.raises(StoppedError):
            trained(augment=augment, folder=tmp_path, progress=stopping_at(step))
    calls = []
    resumed = trained(
        augment=augment, folder=tmp_path, progress=lambda *seen: calls.append(seen[1])
    )
    assert calls == [11, 12, 13, 14, 15]
    for again in (resumed, trained(augment=augment, folder=tmp_path, progress=stopping_at(1))):
        assert_same(again.parameters, whole.parameters)
        assert_same((again.losses, again.agreements), (whole.losses, whole.agreements))


@pytest.mark.parametrize(
    "other",
    [
        {"optimiser": optax.adam(2e-2)},
        {"key": jax.random.key(6)},
        {"temperature": 2.0},
        {"epochs": 2},
        {"augment": lambda batch, key: 2 * batch},
        {"batches": Shuffled(ROWS + 1, 8)},
        {"teacher": network(11, 6, 9, 4)},
        {"student": network(31, 6, 3, 4)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_run_goes_on_from_no_file_of_this(other, tmp_path):
    trained(folder=tmp_path)
    assert_same(trained(folder=tmp_path, **other).parameters, trained(**other).parameters)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_not_gone_on_from(tmp_path):
    whole = trained(folder=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is corrupt"):
        again = trained(folder=tmp_path)
    assert_same(again.parameters, whole.parameters)


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"student": network(1, 6, 3, 5)}, r"one shape .* got \(8, 4\) and \(8, 5\)"),
        ({"student": network(1, 7, 3, 4)}, "`student` cannot be run on the first batch: "),
        ({"teacher": network(1, 7, 3, 4)}, "`teacher` cannot be run on the first batch: "),
        ({"student": (lambda _, x: (x, x), ())}, "`student` must give one array .* got tuple"),
        ({"student": (lambda _, x: x.sum(1), ())}, r"`student` must .* float32 of shape \(8,\)"),
        ({"student": (lambda _, x: x[:, :4], ())}, "`student` has no parameters that are real"),
        ({"batches": []}, "`batches` is empty"),
        ({"batches": lambda _: []}, "`batches` is empty"),
        ({"batches": [ROWS, ROWS[:0]]}, "`batches` has a batch without rows"),
        ({"batches": iter([ROWS])}, "`batches` must be a list, or .* got list_iterator"),
        (
            {"teacher": (lambda _, x: jnp.nan * x[:, :4], ())},
            "The loss of step 1 is nan: take smaller steps .* or check that teacher",
        ),
        ({"epochs": -1}, "`epochs` must be an integer >= 0"),
        ({"temperature": 0.0}, "`temperature` must be a positive finite number"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        trained(**wrong)


WRONG_TYPES = [
    ({"teacher": STUDENT[1]}, "`teacher` must be a pair, .* got list"),
    ({"batches": 3}, "`batches` must be a list, or .* got int"),
    ({"optimiser": 1e-3}, "`optimiser` must be one of optax's, .* got float"),
    ({"key": 3}, "`key` must be one key of JAX"),
]


def check_wrong_types():
    for wrong, message in WRONG_TYPES:
        with pytest.raises(ValueError, match=message):
            trained(**wrong)
    with pytest.raises(ValueError, match=r"one shape, .* got \(2, 3\) and \(2, 4\)"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 4)))


def test_wrong_types_are_refused_in_the_same_words():
    unhooked.check("data_constrained.test_distillation")


def test_rows_that_make_no_batch_are_refused():
    with pytest.raises(ValueError, match="`size` must be an integer from 1 to 40"):
        Shuffled(ROWS, 41)
    with pytest.raises(ValueError, match="`count` must be an integer from 1 to 5"):
        Shuffled(ROWS, 8, count=6)
    with pytest.raises(ValueError, match=r"`rows` must be arrays of one length; got \[2, 3\]"):
        Shuffled((ROWS[:2], ROWS[:3]), 1)


def test_no_epoch_changes_nothing():
    found = trained(epochs=0)
    assert_same(found.parameters, STUDENT[1])
    assert isinstance(found.losses, Iterable) and len(found.losses) == 0
