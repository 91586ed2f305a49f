"""The divergence of two networks' answers: an oracle, invariances and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.data_constrained import agreement, decision_margin, kl_divergence
from routes import normal

TEMPERATURES = (0.3, 1.0, 4.0)


def softmax(logits, temperature=1.0):
    powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def oracle(teacher, student, temperature=1.0):
    p, q = (softmax(np.asarray(each, np.longdouble), temperature) for each in (teacher, student))
    return (temperature**2 * np.sum(p * np.log(p / q), axis=-1)).astype(float)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_the_relative_entropy(temperature):
    teacher, student = 3 * normal(0, 2, 5, 7), 2 * normal(1, 2, 5, 7)
    found = kl_divergence(teacher, student, temperature=temperature)
    np.testing.assert_allclose(found, oracle(teacher, student, temperature), rtol=3e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_its_gradient_is_the_difference_of_probabilities(temperature):
    teacher, student = 3 * normal(0, 5, 7), 2 * normal(1, 5, 7)
    found = jax.grad(lambda s: kl_divergence(teacher, s, temperature=temperature).sum())(student)
    expected = temperature * (softmax(student, temperature) - softmax(teacher, temperature))
    np.testing.assert_allclose(found, expected, atol=3e-6 * temperature)


@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    st.sampled_from([0.0, 1.0, -64.0]),
    st.sampled_from(TEMPERATURES),
)
def test_it_is_zero_exactly_where_logits_agree_up_to_a_constant(seed, size, constant, temperature):
    random = np.random.default_rng(seed)
    teacher = np.round(size * random.standard_normal((4, 6)) * 64) / 64  # a sum rounds nothing
    teacher = teacher.astype(np.float32)
    other = teacher + np.float32(constant)
    assert np.all(kl_divergence(teacher, other, temperature=temperature) == 0)
    other[:, seed % 6] += np.float32(0.25 * size)
    found = kl_divergence(teacher, other, temperature=temperature)
    assert np.all(found >= 0) and not np.isnan(found).any()
    shifted = kl_divergence(teacher + np.float32(constant), other, temperature=temperature)
    np.testing.assert_array_equal(shifted, found)


@pytest.mark.parametrize("distance", [1e-3, 1e-2, 0.3, 1.0, 3.0])
def test_no_digits_are_lost_where_both_nearly_agree(distance):
    teacher = 3 * normal(0, 50, 7)
    student = teacher + np.float32(distance) * normal(1, 50, 7)
    expected = oracle(teacher, student)
    # The logits differ by `distance`, in units of which float32 rounds them.
    allowed = 1e-6 + 1e-5 * np.finfo(np.float32).eps / 1e-7 / distance
    np.testing.assert_allclose(kl_divergence(teacher, student), expected, rtol=allowed)


def test_a_high_temperature_compares_logits_and_a_low_one_decisions():
    teacher, student = normal(0, 5, 7), normal(1, 5, 7)
    high = kl_divergence(teacher, student, temperature=1e3)
    np.testing.assert_allclose(high, np.var(teacher - student, axis=-1) / 2, rtol=1e-2)
    low = kl_divergence(teacher, student, temperature=1e-3) / 1e-3
    at_teacher = np.take_along_axis(student, teacher.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(low, student.max(axis=-1) - at_teacher, atol=1e-2)


def test_what_the_teacher_excludes_costs_nothing_and_what_the_student_excludes_all():
    some, excluding = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, -np.inf])
    expected = oracle(excluding[:2], some[:2]) + np.log(softmax(excluding)[0] / softmax(some)[0])
    expected -= np.log(softmax(excluding[:2])[0] / softmax(some[:2])[0])
    np.testing.assert_allclose(kl_divergence(excluding, some), expected, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda s: kl_divergence(excluding, s))(some)).all()
    assert kl_divergence(some, excluding) == np.inf


def test_half_precision_is_computed_in_single():
    teacher, student = (jnp.asarray(normal(k, 5, 7), jnp.bfloat16) for k in (0, 1))
    found = kl_divergence(teacher, student)
    assert found.dtype == jnp.float32
    single = kl_divergence(teacher.astype(jnp.float32), student.astype(jnp.float32))
    np.testing.assert_array_equal(found, single)


@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 10.0]))
def test_below_the_margin_no_student_decides_otherwise_and_at_it_one_does(seed, size):
    random = np.random.default_rng(seed)
    teacher = (size * random.standard_normal((50, 4))).astype(np.float32)
    student = teacher + (size * random.uniform() * random.standard_normal((50, 4))).astype("f4")
    margin, divergence = decision_margin(teacher), kl_divergence(teacher, student)
    alike = teacher.argmax(axis=1) == student.argmax(axis=1)
    # Roots, since float32 knows the logits to a rounding, and both are quadratic in them.
    assert np.all(alike | (np.sqrt(divergence) >= (1 - 1e-5) * np.sqrt(margin) - 1e-6))

    p = softmax(teacher.astype(float))
    first, second = np.argsort(p, axis=1).T[[-1, -2]]
    rows = np.arange(50)
    q = p.copy()
    q[rows, first] = q[rows, second] = (p[rows, first] + p[rows, second]) / 2
    attained = np.sum(p * np.log(p / q), axis=1)
    np.testing.assert_allclose(np.sqrt(margin), np.sqrt(attained), rtol=1e-5, atol=1e-6)


def linear(parameters, batch):
    return batch @ parameters


def test_agreement_is_that_of_all_rows_however_they_are_divided():
    teacher, student = (linear, normal(0, 4, 3)), (linear, normal(1, 4, 3))
    rows = normal(2, 60, 4)
    found = agreement(teacher, student, [rows[:50], rows[50:]])
    answers = [rows @ network[1] for network in (teacher, student)]
    assert found.rows == 60
    assert found.share == np.mean(answers[0].argmax(axis=1) == answers[1].argmax(axis=1))
    np.testing.assert_allclose(found.divergence, oracle(*answers).mean(), rtol=1e-5)
    itself = agreement(teacher, teacher, [rows])
    assert (itself.share, itself.divergence) == (1.0, 0.0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be a positive finite number"):
        kl_divergence(np.zeros(3), np.zeros(3), temperature=0.0)
    with pytest.raises(ValueError, match=r"two classes at least, .* got shape \(5, 1\)"):
        decision_margin(normal(0, 5, 1))
    pair = linear, normal(0, 4, 3)
    with pytest.raises(ValueError, match="`batches` is empty"):
        agreement(pair, pair, [])
    with pytest.raises(ValueError, match=r"of one shape .* got \(5, 3\) and \(5, 2\)"):
        agreement(pair, (linear, normal(0, 4, 2)), [normal(0, 5, 4)])
