"""Any name reaches the reader: in a figure as it is, in a table as no other."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib import cbook
from matplotlib.figure import Figure

from lowrank_theory import _files, plotting
from lowrank_theory._names import drawable, short
from lowrank_theory.plotting._network import _metric
from lowrank_theory.reports import verification as report
from lowrank_theory.reports._page import svg
from lowrank_theory.studies import layer_study
from lowrank_theory.studies.transfer_rows import DenseMetric
from lowrank_theory.theorems import Direction
from lowrank_theory.verification import RegimeReport, Report, Sample, StatementReport, Verdict
from made_rows import layer_at_rank, network_at_size

ODD = [
    "$", "$$", "$\\frac{$", "price in $, cost in $_{x", "\\$\\$", "_net", "", " ", "\0", "a\nb",
    "\ud800", "<script>alert(1)</script>", "&lt;", "{{ 1/0 }}", "中文", "x" * 100_000, "]]>--",
    "!!",
]  # fmt: skip


def figures(names: list[str]) -> Iterator[Figure]:
    """Every figure that shows a name."""
    rows = [layer_at_rank(network=name, layer=name) for name in names]
    sample = Sample(Direction.UPPER, 2, np.array([0.5, 1.0]), np.full(2, 2.0), np.zeros(2))
    regime = RegimeReport("square", sample, Verdict.CONSISTENT, 0.5)
    statements = tuple(StatementReport(n, "sure upper bound", 0.0, (regime,), ()) for n in names)
    figure, (panel,) = plotting.panels(1)
    metric = DenseMetric(name=names[0], value=0.5, larger_is_better=True, scored=10)
    _metric(panel, [network_at_size(method=name) for name in names], metric)
    legend = panel.legend()
    assert len(legend.get_texts()) == 1 + len(set(names))
    yield figure
    yield plotting.layer_errors(rows)
    yield plotting.tightness(Report(statements))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(ODD), 4))
def test_no_odd_name_ends_a_figure(first):
    for figure in figures(ODD[first : first + 4]):
        ET.fromstring(svg(figure))


@pytest.mark.slow
@given(st.text())
@example("$\\frac{$")
@example("price in $, cost in $_{x")
@example("\\$")
@example("_net")
@example("\ud800")
@example("x" * 100_000)
def test_any_name_is_drawn_as_it_is(name):
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, drawable(name), fontsize=2)
    ET.fromstring(svg(figure))
    assert not cbook.is_math_text(drawable(name)), "read as mathematics"
    drawn = drawable(name).replace("\\$", "$")
    assert drawn.strip() and drawn.isprintable() and len(drawn) <= 61
    if name.isprintable() and 0 < len(name) <= 60 and name == name.strip():
        assert drawn.strip() == name


keys = st.one_of(st.text(max_size=5), st.sampled_from(["kernel", "a", "b", "a.b", "'", "!!", "/"]))
leaf = st.just(0.0)
trees = st.dictionaries(
    keys,
    leaf | st.dictionaries(keys, leaf, min_size=1, max_size=3) | st.lists(leaf, max_size=3),
    max_size=4,
)


@given(trees)
@example({"a": {"b": 0.0}, "a.b": 0.0})
@example({"!": 0.0, "?": 0.0, "": 0.0})
@example({"kernel": 0.0, "a": {"kernel": 0.0}, "a#1": 0.0})
def test_the_short_names_of_one_network_are_all_different(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert len({short(path) for path in paths}) == len(paths)
    assert all(short(path) for path in paths)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("['stages'][0][1]['first']['kernel']", "stages.0.1.first"),
        (".weights[0]", "weights.0"),
        ("['kernel']", "kernel"),
        ("['mlp/~/linear_0']['w']", "mlp/~/linear_0.w"),
        ("['layers']['kernel'] #3", "layers #3"),
        ("", "parameters"),
        ("['!!']", "['!!']"),
        ("['--']['$']", "['--']['$']"),
    ],
)
def test_paths_are_short(path, words):
    assert short(path) == words


@pytest.mark.slow
def test_odd_names_of_networks_and_parameters_are_in_the_report(tmp_path):
    random = np.random.default_rng(0)
    first, second = "w$\\frac{1}{$", "<b>!!</b>\ud800"
    parameters = {
        first: random.standard_normal((6, 5)).astype(np.float32),
        second: random.standard_normal((5, 4)).astype(np.float32),
    }
    batches = [random.standard_normal((20, 6)).astype(np.float32) for _ in range(2)]
    study = layer_study.study(
        "<i>$\\frac{$\ud800", lambda p, x: x @ p[first] @ p[second], parameters, batches, batches
    )
    sample = Sample(Direction.UPPER, 2, np.array([0.5, 1.0]), np.full(2, 2.0), np.zeros(2))
    regime = RegimeReport("square", sample, Verdict.CONSISTENT, 0.5)
    statement = StatementReport("planted_rank.$_{", "sure upper bound", 0.0, (regime,), ())
    found = report.Record(
        report=Report((statement,)), studies=(study,), skipped=("<u>$",), preset="quick", only=(),
        users=(), theorems=(), seed=0, failure_probability=0.05, confidence=0.99, seconds=1.0,
    )  # fmt: skip
    report.write(found, tmp_path)
    page = (tmp_path / "report.html").read_bytes().decode()
    assert "&lt;b&gt;!!&lt;/b&gt;" in page and "&lt;i&gt;" in page and "&lt;u&gt;" in page
    assert not any(tag in page for tag in ("<b>!", "<i>", "<u>"))
    rows = _files.from_json((tmp_path / "report.json").read_bytes())["layers"]
    assert {row["network"] for row in rows} == {"<i>$\\frac{$\ud800"}
