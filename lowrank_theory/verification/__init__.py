"""Check theorems: `verify` by sampling, `attack` by gradient, `scale` by their rates."""

from lowrank_theory.verification.attack import Finding as Finding
from lowrank_theory.verification.attack import Witness as Witness
from lowrank_theory.verification.attack import attack as attack
from lowrank_theory.verification.monte_carlo import Control as Control
from lowrank_theory.verification.monte_carlo import RegimeReport as RegimeReport
from lowrank_theory.verification.monte_carlo import Report as Report
from lowrank_theory.verification.monte_carlo import StatementReport as StatementReport
from lowrank_theory.verification.monte_carlo import Verdict as Verdict
from lowrank_theory.verification.monte_carlo import verify as verify
from lowrank_theory.verification.sampling import Sample as Sample
from lowrank_theory.verification.scaling import Fit as Fit
from lowrank_theory.verification.scaling import Slope as Slope
from lowrank_theory.verification.scaling import scale as scale
