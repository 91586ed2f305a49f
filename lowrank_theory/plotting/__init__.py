"""Draw reports: every function returns a matplotlib `Figure`, and neither saves nor shows it.

One style throughout: the colours of Okabe and Ito, which colour-blind readers tell apart, each with
a marker and a line of its own, so that a figure can be read in grey. Nothing here touches
matplotlib's global state.
"""

from lowrank_theory.plotting._compare import compare as compare
from lowrank_theory.plotting._frontier import frontier as frontier
from lowrank_theory.plotting._gains import gains as gains
from lowrank_theory.plotting._layers import calibration_sizes as calibration_sizes
from lowrank_theory.plotting._layers import layer_errors as layer_errors
from lowrank_theory.plotting._network import transfer as transfer
from lowrank_theory.plotting._spectra import layer_spectra as layer_spectra
from lowrank_theory.plotting._spectra import residual_spectra as residual_spectra
from lowrank_theory.plotting._style import BLACK as BLACK
from lowrank_theory.plotting._style import GREY as GREY
from lowrank_theory.plotting._style import LIMIT as LIMIT
from lowrank_theory.plotting._style import SERIES as SERIES
from lowrank_theory.plotting._style import legend_above as legend_above
from lowrank_theory.plotting._style import panels as panels
from lowrank_theory.plotting._verification import tightness as tightness
