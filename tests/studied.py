"""The study of the embedded network."""

import functools

import numpy as np

from lowrank_theory.networks import LayerStudy, Perceptron, digits_data, digits_network, study


def batches_of(rows, count: int = 12) -> list[np.ndarray]:
    """Batches of rows from everywhere."""
    return [np.asarray(rows)[start::count] for start in range(count)]


@functools.cache
def digits_study() -> LayerStudy:
    data = digits_data()
    training, held_out = batches_of(data.training_images), batches_of(data.held_out_images, 3)
    return study("digits", Perceptron.__call__, digits_network(), training, held_out)
