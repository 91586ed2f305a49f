"""Small trained networks, the images they were trained on, and what the theorems say of them.

One network is embedded (`digits_network`), one is to be supplied (`mnist_network`); `study`
compresses each layer and holds the theorems against it. `observe` finds what each weight of any JAX
function multiplies; `replace` runs the function on factors.
"""

from lowrank_theory.networks._views import MatrixView as MatrixView
from lowrank_theory.networks.digits import digits_data as digits_data
from lowrank_theory.networks.digits import digits_network as digits_network
from lowrank_theory.networks.layer_study import LayerStudy as LayerStudy
from lowrank_theory.networks.layer_study import study as study
from lowrank_theory.networks.mnist import mnist_data as mnist_data
from lowrank_theory.networks.mnist import mnist_network as mnist_network
from lowrank_theory.networks.observe import Observation as Observation
from lowrank_theory.networks.observe import observe as observe
from lowrank_theory.networks.perceptron import Perceptron as Perceptron
from lowrank_theory.networks.perceptron import Split as Split
from lowrank_theory.networks.replace import replace as replace
