"""What a ladder makes that is no matrix: it is judged on rows."""

import numpy as np
import pytest

from layers import INPUTS, LAYERS, B, T, W, X, calibrated
from lowrank_theory.approximations import Table
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks import Bytes, LayerError, compress
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, ActivationWeighted, Need, Sweep, rows_of
from small_networks import mlp, run

pytestmark = pytest.mark.thinned(4)


class Means(AbstractLadder):
    """Of each input a comparison with its mean, and two entries for it: no matrix."""

    counts: tuple[int, ...] = (2, 6)

    @property
    def needs(self):
        return frozenset({Need.ROWS})

    def sweep(self, observed):
        rows, sizes = rows_of(observed), []
        wanted = rows.original @ np.asarray(observed.weights, float)
        means = rows.mean(rows.layer)
        above = rows.layer >= means
        for count in self.counts:
            chosen = np.argsort(-rows.layer.std(axis=0))[:count]
            design = np.hstack([above[:, chosen], ~above[:, chosen]]).astype(float)
            scaled = np.sqrt(rows.counts)[:, None]
            entries = np.linalg.lstsq(scaled * design, scaled * wanted, rcond=None)[0]
            entries = np.stack([entries[count:], entries[:count]], axis=1)
            table = Table(
                chosen[:, None].astype(np.int32),
                means[chosen, None].astype(np.float32),
                entries.astype(np.float32),
                inputs=rows.layer.shape[1],
            )
            sizes.append((f"{count} comparisons", table))
        return Sweep.of(self, observed, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_tables_are_judged_on_rows(sequential):
    """Fewer rows than are kept: the errors are those of all of them."""
    network = mlp()
    given = network.function, network.parameters, network.batches
    found = compress(*given, Bytes(0.5), method=Means(), sequential=sequential)
    last, bias = list(found.layers.values())[-1], network.parameters[-1]["b"]
    assert last.size is not None and last.method == "Means"
    if sequential:
        outputs, other = run(network) - bias, run(network, found) - bias
        error = np.linalg.norm(outputs - other) / np.linalg.norm(outputs)
        assert last.relative_error == pytest.approx(error, rel=1e-3)
    else:
        first = next(iter(found.layers.values()))
        rows, weights = np.concatenate(network.batches), network.parameters[0]["w"]
        made = np.asarray(found.parameters[0]["w"].apply(rows), float)
        error = np.linalg.norm(rows @ weights - made) / np.linalg.norm(rows @ weights)
        assert first.relative_error == pytest.approx(error, rel=1e-4)
    mixed = compress(*given, Bytes(0.6), method=[Means(), ActivationWeighted()])
    planned = {name: each.planned for name, each in mixed.candidates.items()}
    assert planned["mixture"] == min(loss for loss in planned.values() if loss is not None)


@pytest.mark.parametrize("layer", ["rows", "rows, affine", "compressed rows, affine"])
def test_a_sweep_of_tables_states_their_errors(layer):
    observed = LAYERS[layer]()
    sweep = Means().sweep(observed)
    inside = (X if observed.compressed_activations is None else T).astype(float)
    for size, square in enumerate(sweep.squared_errors):
        made = sweep.at(size)
        outputs = np.asarray(made.approximation.apply(inside), float)
        difference = X.astype(float) @ W.astype(float) - outputs
        if observed.bias is not None:
            assert made.bias is not None
            difference += B - np.asarray(made.bias, float)
        assert np.sqrt(square) == pytest.approx(np.linalg.norm(difference), rel=1e-5)


def test_of_a_sample_of_rows_nothing_is_sure():
    """Zeros have no hash, and are in no sample: what a table makes of them is not known."""
    rows = np.vstack([X, np.zeros_like(X[:3])])
    found = [
        Means().sweep(
            Observed(weights=W, calibration=Calibration.empty(INPUTS, rows=True).update(x))
        )
        for x in (X, rows)
    ]
    known, unknown = (bool(sweep.at(1).certificate.certified) for sweep in found)
    assert known and not unknown
    layer = (lambda w, x: x @ w), W, [rows]
    asked = compress(*layer, LayerError(0.9), method=Means())
    assert asked.layers[""].size is None and "it errs by" in asked.layers[""].remark
    given = compress(*layer, Bytes(0.9), method=Means())
    assert given.layers[""].size is not None and not given.layers[""].certified


def test_a_calibration_without_rows_serves_no_table():
    with pytest.raises(ValueError, match="keeps no rows, which this needs"):
        Means().sweep(calibrated(Calibration))
    kept = Calibration.empty(INPUTS, rows=True).update(X)
    sweep = Means().sweep(Observed(weights=W, calibration=kept))
    again = Means().sweep(Observed(weights=W, activations=X))
    np.testing.assert_allclose(sweep.squared_errors, again.squared_errors, rtol=1e-5)
    with pytest.raises(ValueError, match="needs rows that the layer sees"):
        Means().sweep(Observed(weights=W))
