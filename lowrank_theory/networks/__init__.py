"""Trained networks, the data they were trained on, and what the theorems say of them.

One network is embedded (`digits_network`), the others are read where `LOWRANK_DATA` names a folder
that holds them; `study` compresses each layer of a perceptron and holds the theorems against it.
`observe` finds what each weight of any JAX function multiplies; `replace` runs the function on
factors.
"""

from lowrank_theory.networks._views import MatrixView as MatrixView
from lowrank_theory.networks.bert import Bert as Bert
from lowrank_theory.networks.bert import Tokens as Tokens
from lowrank_theory.networks.bert import bert_network as bert_network
from lowrank_theory.networks.bert import bert_tokens as bert_tokens
from lowrank_theory.networks.bert import embed as embed
from lowrank_theory.networks.character_lstm import CharacterLSTM as CharacterLSTM
from lowrank_theory.networks.character_lstm import character_lstm_network as character_lstm_network
from lowrank_theory.networks.character_lstm import nats_per_character as nats_per_character
from lowrank_theory.networks.character_lstm import shakespeare_text as shakespeare_text
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
from lowrank_theory.networks.resnet import Cifar10 as Cifar10
from lowrank_theory.networks.resnet import ResNet as ResNet
from lowrank_theory.networks.resnet import cifar10_data as cifar10_data
from lowrank_theory.networks.resnet import correct as correct
from lowrank_theory.networks.resnet import resnet_network as resnet_network
from lowrank_theory.networks.texts import ag_news_data as ag_news_data
from lowrank_theory.networks.texts import probe_correct as probe_correct
from lowrank_theory.networks.texts import spearman as spearman
from lowrank_theory.networks.texts import stsb_data as stsb_data
