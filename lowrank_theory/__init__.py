"""The theory of low-rank compression of neural networks, executable.

Generate a layer (`Setting.draw`), recover low-rank weights (`recover`), bound the error
(`theorems`), and `verify`, `attack` and `scale` the bounds.
"""

from lowrank_theory import approximations as approximations
from lowrank_theory import data_constrained as data_constrained
from lowrank_theory import generators as generators
from lowrank_theory import lookup as lookup
from lowrank_theory import mixtures as mixtures
from lowrank_theory import networks as networks
from lowrank_theory import quantisation as quantisation
from lowrank_theory import sparsification as sparsification
from lowrank_theory import theorems as theorems
from lowrank_theory.calibration import Calibration as Calibration
from lowrank_theory.calibration import TriangularCalibration as TriangularCalibration
from lowrank_theory.calibration import calibrate as calibrate
from lowrank_theory.calibration import load_calibration as load_calibration
from lowrank_theory.certification import CodeCertificate as CodeCertificate
from lowrank_theory.certification import OutputCertificate as OutputCertificate
from lowrank_theory.certification import certify as certify
from lowrank_theory.certification import certify_code as certify_code
from lowrank_theory.certification import certify_losses as certify_losses
from lowrank_theory.devices import ShardedCalibration as ShardedCalibration
from lowrank_theory.devices import recover_layers as recover_layers
from lowrank_theory.error_measures import fitting_error as fitting_error
from lowrank_theory.error_measures import output_error as output_error
from lowrank_theory.error_measures import relative_fitting_error as relative_fitting_error
from lowrank_theory.error_measures import weight_error as weight_error
from lowrank_theory.generators.noise import Gaussian as Gaussian
from lowrank_theory.problems import Layer as Layer
from lowrank_theory.problems import Observed as Observed
from lowrank_theory.problems import Problem as Problem
from lowrank_theory.problems import Setting as Setting
from lowrank_theory.problems import Truth as Truth
from lowrank_theory.recovery import ActivationWeighted as ActivationWeighted
from lowrank_theory.recovery import EveryRank as EveryRank
from lowrank_theory.recovery import LowRank as LowRank
from lowrank_theory.recovery import NuclearNormRelu as NuclearNormRelu
from lowrank_theory.recovery import Randomized as Randomized
from lowrank_theory.recovery import Recovery as Recovery
from lowrank_theory.recovery import Ridge as Ridge
from lowrank_theory.recovery import SingularValueThreshold as SingularValueThreshold
from lowrank_theory.recovery import TruncatedSVD as TruncatedSVD
from lowrank_theory.recovery import every_rank as every_rank
from lowrank_theory.recovery import recover as recover
from lowrank_theory.verification import Report as Report
from lowrank_theory.verification import Verdict as Verdict
from lowrank_theory.verification import attack as attack
from lowrank_theory.verification import scale as scale
from lowrank_theory.verification import verify as verify
