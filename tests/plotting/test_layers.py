"""Figures of layers and of a transfer: a panel for each, however many there are."""

import dataclasses

import pytest
from matplotlib.figure import Figure

from lowrank_theory import plotting
from lowrank_theory.networks import LayerStudy
from lowrank_theory.studies.transfer_rows import Composition, DenseMetric
from made_rows import network_at_size
from studied import digits_study


@pytest.fixture
def digits() -> LayerStudy:
    return digits_study()


def many(studied: LayerStudy, copies: int) -> tuple[list, list]:
    """As if the network had more layers."""
    rows, layers = (
        [
            dataclasses.replace(each, layer=f"{number}{each.layer}")
            for number in range(copies)
            for each in entries
        ]
        for entries in (studied.rows, studied.layers)
    )
    return rows, layers


def shown(figure: Figure) -> int:
    figure.draw_without_rendering()
    return len(figure.axes)


@pytest.mark.slow
def test_pictures_of_few_and_of_many_layers(digits):
    rows, layers = many(digits, 7)
    assert shown(plotting.layer_errors(digits.rows)) == 3
    figure = plotting.layer_errors(rows)
    assert len(figure.axes) == 12 and "all 21 layers" in figure.axes[-1].get_title()
    assert shown(plotting.residual_spectra(digits.layers)) == 3
    assert len(plotting.residual_spectra(layers).axes) == 12
    for count, figure in (
        (2, plotting.layer_spectra(layers)),
        (1, plotting.calibration_sizes(rows, layers)),
    ):
        assert shown(figure) == count


@pytest.mark.slow
def test_the_picture_of_a_transfer(digits):
    networks = [
        network_at_size(budget=size, method=method, bytes=int(100 * size))
        for size in (0.25, 0.5)
        for method in ("data-agnostic", "data-driven", "sequential")
    ]
    figure = plotting.transfer(
        networks=networks,
        metric=DenseMetric(name="accuracy", larger_is_better=True, value=0.95, scored=10),
        rows=digits.rows,
        residuals=[each.residual for each in digits.layers],
        composition=Composition(
            layers=("a", "b", "c"), alone=(0.1, 0.2, 0.1), measured=0.2, root_of_squares=0.25,
            sum=0.4, steps=(0.1, 0.1, 0.1), telescoping=0.3,
        ),
    )  # fmt: skip
    assert shown(figure) == 6


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="`rows` is empty"):
        plotting.layer_errors([])
    with pytest.raises(ValueError, match="`layers` is empty"):
        plotting.layer_spectra([])
    with pytest.raises(ValueError, match="`layers` has no residual"):
        plotting.residual_spectra([])
