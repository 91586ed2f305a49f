"""Small trained networks and the images they were trained on: one embedded, one to be supplied."""

from lowrank_theory.networks.digits import digits_data as digits_data
from lowrank_theory.networks.digits import digits_network as digits_network
from lowrank_theory.networks.mnist import mnist_data as mnist_data
from lowrank_theory.networks.mnist import mnist_network as mnist_network
from lowrank_theory.networks.perceptron import Perceptron as Perceptron
from lowrank_theory.networks.perceptron import Split as Split
