"""The study of the embedded network, and a tiny network to be studied."""

import functools

import numpy as np

from lowrank_theory.models.catalogue import Case, Loaded, Metric, Sizes
from lowrank_theory.networks import LayerStudy, Perceptron, digits_data, digits_network, study

SIZES = Sizes(calibration=60, held_out=20, units=12, items=16, batch=20)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def load(sizes: Sizes) -> Loaded:
    network = Perceptron(
        [normal(0, 10, 10), normal(1, 10, 10), normal(2, 10, 10)],
        [normal(3, 10), normal(4, 10), normal(5, 10)],
    )
    mixing = normal(6, 10, 10) * np.geomspace(1, 0.03, 10, dtype=np.float32)
    rows = normal(7, 200, 10) @ mixing.T + 0.2
    labels = np.asarray(network(rows)).argmax(axis=1)
    judged = slice(100, 100 + sizes.items)

    def scores(function, parameters):
        return np.asarray(function(parameters, rows[judged])).argmax(axis=1) == labels[judged]

    return Loaded(
        Perceptron.__call__,
        network,
        [rows[k : k + sizes.batch] for k in range(0, sizes.calibration, sizes.batch)],
        [rows[100 : 100 + sizes.held_out]],
        [rows[100 + k][None] for k in range(sizes.units)],
        Metric("accuracy", True, scores, lambda found: float(np.mean(found))),
    )


TINY = Case("tiny", "a tiny perceptron", "row", "Gaussian rows.", SIZES, load, lambda: None)


def batches_of(rows, count: int = 12) -> list[np.ndarray]:
    """Batches of rows from everywhere."""
    return [np.asarray(rows)[start::count] for start in range(count)]


@functools.cache
def digits_study() -> LayerStudy:
    data = digits_data()
    training, held_out = batches_of(data.training_images), batches_of(data.held_out_images, 3)
    return study("digits", Perceptron.__call__, digits_network(), training, held_out)
