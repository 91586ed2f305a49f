"""Prose and numbers of a page."""

import numpy as np
import pytest

from lowrank_theory.reports import _page


def test_formulas_are_complete_without_a_mathematical_font():
    html = _page.prose("If $\\lVert x\\rVert \\le \\sqrt{a}$:\n\n- `b` (**c**), $q\n- r < 1$.\n- d")
    assert "√" in html and "msqrt" not in html
    assert html.count("<li>") == 2 and html.count("<math") == 2
    assert "<code>b</code> (<strong>c</strong>)" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (np.inf, "–"), (0.0, "0"), (1.0, "1"), (0.12345, "0.123"), (999.7, "1,000"),
     (1234.6, "1,230"), (1e-14, "1.00e-14"), (-0.25, "-0.25"), (2e7, "2.00e7")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert _page.number(value) == text
