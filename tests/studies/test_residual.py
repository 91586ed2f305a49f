"""What remains of a layer is told from white noise by the laws of random matrices."""

import numpy as np
import pytest

from lowrank_theory.studies._residual import Residual

pytestmark = pytest.mark.thinned(3)


def residual(noise: np.ndarray) -> Residual:
    found = Residual.of(noise.T @ noise, len(noise), noise.shape[1], 0)
    assert found is not None
    return found


def test_gaussian_noise_is_seldom_refuted_and_other_noise_is():
    rng = np.random.default_rng(4)

    def holds(noise: np.ndarray) -> list[bool]:
        return [row.holds for row in residual(noise).hypotheses("a layer")]

    draws = [holds(rng.normal(size=(60, 40))) for _ in range(300)]
    assert np.all(np.mean(draws, axis=0) >= 0.97)
    noise = rng.normal(size=(60, 40))
    assert holds(noise * np.linspace(0.5, 1.5, 40))[1] is False
    assert holds(noise + np.outer(np.ones(60), np.ones(40)))[0] is False


@pytest.mark.parametrize("shape", [(400, 100), (100, 100), (100, 400)])
def test_white_noise_follows_the_law_of_marchenko_and_pastur(shape):
    noise = 1e3 * np.random.default_rng(5).normal(size=shape)
    found = residual(noise).spectrum()
    assert found.edge_ratio == pytest.approx(1, abs=0.05) and found.distance < 0.05
    assert found.singular_value == pytest.approx(found.marchenko_pastur, abs=0.05)
    coloured = residual(noise * np.geomspace(1, 100, shape[1])).spectrum()
    assert coloured.edge_ratio > 1.2 and coloured.distance > 0.3
