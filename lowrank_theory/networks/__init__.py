"""Trained networks, the data they were trained on, and what the theorems say of them.

`observe` finds what each weight of any JAX function multiplies, `survey` where; `replace` runs the
function on factors, and `compress` chooses and fits them. `unit_errors` and `output_errors` are
what `certify_losses` asks for. `study` holds the theorems against each layer of a network, and
`transfer` studies a network of the `catalogue`. Two networks are embedded (`digits_network`,
`alexnet_network`), the others are read where `LOWRANK_DATA` names a folder that holds them.
"""

from lowrank_theory.approximations import Affine as Affine
from lowrank_theory.networks._compressed_file import load_compressed as load_compressed
from lowrank_theory.networks._views import MatrixView as MatrixView
from lowrank_theory.networks.alexnet import AlexNet as AlexNet
from lowrank_theory.networks.alexnet import alexnet_network as alexnet_network
from lowrank_theory.networks.allocation import Allocation as Allocation
from lowrank_theory.networks.allocation import Options as Options
from lowrank_theory.networks.allocation import allocate as allocate
from lowrank_theory.networks.bert import Bert as Bert
from lowrank_theory.networks.bert import Tokens as Tokens
from lowrank_theory.networks.bert import bert_network as bert_network
from lowrank_theory.networks.bert import bert_tokens as bert_tokens
from lowrank_theory.networks.bert import embed as embed
from lowrank_theory.networks.character_lstm import CharacterLSTM as CharacterLSTM
from lowrank_theory.networks.character_lstm import character_lstm_network as character_lstm_network
from lowrank_theory.networks.character_lstm import nats_per_character as nats_per_character
from lowrank_theory.networks.character_lstm import shakespeare_text as shakespeare_text
from lowrank_theory.networks.compress import Bytes as Bytes
from lowrank_theory.networks.compress import Compressed as Compressed
from lowrank_theory.networks.compress import CompressedLayer as CompressedLayer
from lowrank_theory.networks.compress import IdealBits as IdealBits
from lowrank_theory.networks.compress import LayerError as LayerError
from lowrank_theory.networks.compress import MultiplyAdds as MultiplyAdds
from lowrank_theory.networks.compress import Parameters as Parameters
from lowrank_theory.networks.compress import RankRule as RankRule
from lowrank_theory.networks.compress import compress as compress
from lowrank_theory.networks.digits import digits_data as digits_data
from lowrank_theory.networks.digits import digits_network as digits_network
from lowrank_theory.networks.held_out import output_errors as output_errors
from lowrank_theory.networks.held_out import unit_errors as unit_errors
from lowrank_theory.networks.layer_study import LayerStudy as LayerStudy
from lowrank_theory.networks.layer_study import study as study
from lowrank_theory.networks.mnist import mnist_data as mnist_data
from lowrank_theory.networks.mnist import mnist_network as mnist_network
from lowrank_theory.networks.observe import Observation as Observation
from lowrank_theory.networks.observe import Site as Site
from lowrank_theory.networks.observe import Survey as Survey
from lowrank_theory.networks.observe import observe as observe
from lowrank_theory.networks.observe import survey as survey
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
from lowrank_theory.networks.transfer import Transfer as Transfer
from lowrank_theory.networks.transfer import transfer as transfer

AffineLowRank = Affine
