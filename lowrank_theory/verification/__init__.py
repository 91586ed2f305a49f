"""Check theorems: `verify` by sampling, with verdicts, critical constants and negative controls."""

from lowrank_theory.verification.monte_carlo import Control as Control
from lowrank_theory.verification.monte_carlo import RegimeReport as RegimeReport
from lowrank_theory.verification.monte_carlo import Report as Report
from lowrank_theory.verification.monte_carlo import Sample as Sample
from lowrank_theory.verification.monte_carlo import StatementReport as StatementReport
from lowrank_theory.verification.monte_carlo import Verdict as Verdict
from lowrank_theory.verification.monte_carlo import verify as verify
