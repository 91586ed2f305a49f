"""Calibration: what a layer saw, as statistics of constant size.

`Calibration` keeps second moments; `TriangularCalibration` a triangular factor of the rows, for
about twice the work and without losing half the digits. `calibrate` streams batches into either,
and into a file from which a run that was killed resumes. Both keep a `RowSample`.
"""

from lowrank_theory.calibration._moments import AbstractCalibration as AbstractCalibration
from lowrank_theory.calibration._moments import Calibration as Calibration
from lowrank_theory.calibration._moments import CompressedMoments as CompressedMoments
from lowrank_theory.calibration._row_sample import RowSample as RowSample
from lowrank_theory.calibration._stream import calibrate as calibrate
from lowrank_theory.calibration._stream import load_calibration as load_calibration
from lowrank_theory.calibration._triangular import TriangularCalibration as TriangularCalibration
