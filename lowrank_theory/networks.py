"""Trained networks, the data they were trained on, and what the theorems say of them.

`observe` finds what each weight of any JAX function multiplies, `survey` where; `replace` runs the
function on factors, and `compress` chooses and fits them; `frontier` does so by many kinds for many
budgets. `unit_errors` and `output_errors` are what `certify_losses` asks for. `study` holds the
theorems against each layer of a network, `transfer` studies a network of the `catalogue`, and
`compare` compares methods on one. Three networks are embedded (`digits_network`,
`digits_cnn_network`, `alexnet_network`), the others are read where `LOWRANK_DATA` names a folder
that holds them.
"""

from lowrank_theory._engine.allocation import Allocation as Allocation
from lowrank_theory._engine.allocation import Options as Options
from lowrank_theory._engine.allocation import allocate as allocate
from lowrank_theory._engine.compress import Bytes as Bytes
from lowrank_theory._engine.compress import IdealBits as IdealBits
from lowrank_theory._engine.compress import LayerError as LayerError
from lowrank_theory._engine.compress import MultiplyAdds as MultiplyAdds
from lowrank_theory._engine.compress import Parameters as Parameters
from lowrank_theory._engine.compress import RankRule as RankRule
from lowrank_theory._engine.compress import compress as compress
from lowrank_theory._engine.compressed import Candidate as Candidate
from lowrank_theory._engine.compressed import Compressed as Compressed
from lowrank_theory._engine.compressed import CompressedLayer as CompressedLayer
from lowrank_theory._engine.compressed import load_compressed as load_compressed
from lowrank_theory._engine.held_out import output_errors as output_errors
from lowrank_theory._engine.held_out import unit_errors as unit_errors
from lowrank_theory._engine.observation import Observation as Observation
from lowrank_theory._engine.observation import Site as Site
from lowrank_theory._engine.observation import Survey as Survey
from lowrank_theory._engine.observe import observe as observe
from lowrank_theory._engine.observe import survey as survey
from lowrank_theory._engine.replace import replace as replace
from lowrank_theory._engine.views import MatrixView as MatrixView
from lowrank_theory.approximations import Affine as Affine
from lowrank_theory.models.alexnet import AlexNet as AlexNet
from lowrank_theory.models.alexnet import alexnet_network as alexnet_network
from lowrank_theory.models.bert import Bert as Bert
from lowrank_theory.models.bert import Tokens as Tokens
from lowrank_theory.models.bert import bert_network as bert_network
from lowrank_theory.models.bert import bert_tokens as bert_tokens
from lowrank_theory.models.bert import embed as embed
from lowrank_theory.models.catalogue import Case as Case
from lowrank_theory.models.catalogue import Loaded as Loaded
from lowrank_theory.models.catalogue import Metric as Metric
from lowrank_theory.models.catalogue import Sizes as Sizes
from lowrank_theory.models.character_lstm import CharacterLSTM as CharacterLSTM
from lowrank_theory.models.character_lstm import character_lstm_network as character_lstm_network
from lowrank_theory.models.character_lstm import nats_per_character as nats_per_character
from lowrank_theory.models.character_lstm import shakespeare_text as shakespeare_text
from lowrank_theory.models.digits import digits_data as digits_data
from lowrank_theory.models.digits import digits_network as digits_network
from lowrank_theory.models.digits_cnn import DigitsCNN as DigitsCNN
from lowrank_theory.models.digits_cnn import digits_cnn_network as digits_cnn_network
from lowrank_theory.models.mnist import mnist_data as mnist_data
from lowrank_theory.models.mnist import mnist_network as mnist_network
from lowrank_theory.models.news import NewsNetwork as NewsNetwork
from lowrank_theory.models.news import news_network as news_network
from lowrank_theory.models.normalised import batch_normalisations as batch_normalisations
from lowrank_theory.models.perceptron import Dataset as Dataset
from lowrank_theory.models.perceptron import Perceptron as Perceptron
from lowrank_theory.models.resnet import Cifar10 as Cifar10
from lowrank_theory.models.resnet import ResNet as ResNet
from lowrank_theory.models.resnet import cifar10_data as cifar10_data
from lowrank_theory.models.resnet import correct as correct
from lowrank_theory.models.resnet import resnet_network as resnet_network
from lowrank_theory.models.texts import ag_news_data as ag_news_data
from lowrank_theory.models.texts import probe_correct as probe_correct
from lowrank_theory.models.texts import spearman as spearman
from lowrank_theory.models.texts import stsb_data as stsb_data
from lowrank_theory.studies.compare import Comparison as Comparison
from lowrank_theory.studies.compare import compare as compare
from lowrank_theory.studies.frontier import Frontier as Frontier
from lowrank_theory.studies.frontier import frontier as frontier
from lowrank_theory.studies.layer_study import LayerStudy as LayerStudy
from lowrank_theory.studies.layer_study import study as study
from lowrank_theory.studies.statistics import kurtosis as kurtosis
from lowrank_theory.studies.statistics import outlier_ratio as outlier_ratio
from lowrank_theory.studies.statistics import participation_ratio as participation_ratio
from lowrank_theory.studies.statistics import stable_rank as stable_rank
from lowrank_theory.studies.transfer import Transfer as Transfer
from lowrank_theory.studies.transfer import transfer as transfer

AffineLowRank = Affine
