"""The trained networks at hand, each with the data to calibrate it, to certify it and to judge it.

Whatever is fitted is fitted to training data; errors, certificates and the metric are of data that
the compression has not seen. `CASES["digits"].load()` is what `transfer` studies.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from scipy import stats

from lowrank_theory._numerics import check_count
from lowrank_theory._user_files import in_file, run_file
from lowrank_theory.models.alexnet import alexnet_network
from lowrank_theory.models.bert import Tokens, bert_network, bert_tokens, embed
from lowrank_theory.models.character_lstm import (
    character_lstm_network,
    nats_per_character,
    shakespeare_text,
)
from lowrank_theory.models.digits import digits_data, digits_network
from lowrank_theory.models.digits_cnn import digits_cnn_network
from lowrank_theory.models.mnist import mnist_data, mnist_network
from lowrank_theory.models.news import LENGTH, news_network
from lowrank_theory.models.perceptron import Dataset, Perceptron
from lowrank_theory.models.resnet import Cifar10, cifar10_data, correct, resnet_network
from lowrank_theory.models.texts import ag_news_data, stsb_data

WINDOW = 200  # characters in a unit of the character LSTM
APART = 400  # characters between two such units
LENGTHS = (10, 24)  # tokens to which a sentence is cut
NEWS_LENGTHS = (32, 48)  # the same of a text of AG News

Function = Callable[[PyTree, Any], Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many units are taken, and how many stand in a batch.

    - `calibration`: training units, to which layers are fitted;
    - `held_out`: other units, on which the errors of layers are measured;
    - `units`: as many of these, one by one, for certificates;
    - `items`: what the metric scores (images, windows of 1,000 characters, pairs of sentences);
    - `batch`: units that are computed together;
    - `passes`: over the calibration data, for a sequential fit; `None`, one for each layer.

    Raises `ValueError` for fewer than two of any, or calibration units for fewer than two batches.
    """

    calibration: int
    held_out: int
    units: int
    items: int
    batch: int
    passes: int | None = None

    def __post_init__(self) -> None:
        for name in ("calibration", "held_out", "units", "items", "batch"):
            check_count(name, getattr(self, name), 2)
        if self.passes is not None:
            check_count("passes", self.passes, 1)
        if self.calibration <= self.batch:
            raise ValueError(
                f"`calibration` must be above `batch`, so that the calibration can be halved; got "
                f"{self.calibration} and {self.batch}."
            )


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a network is for, measured on held-out items.

    `scores(function, parameters)` has a row for each item, the same items for every network, so
    that two networks are compared pair by pair; `value(scores)` is the figure, of these rows or of
    any resampled from them.
    """

    name: str
    larger_is_better: bool
    scores: Callable[[Function, PyTree], np.ndarray]
    value: Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A network, `function(parameters, batch)`, and its data.

    `calibration` and `held_out` are batches of many units, `units` batches of one each, which are
    held out too. `select` says which weights are to be compressed; `None`, all.
    """

    function: Function
    parameters: PyTree
    calibration: list[PyTree]
    held_out: list[PyTree]
    units: list[PyTree]
    metric: Metric
    select: Callable[[str], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """A network by its name.

    - `unit`: what is drawn independently, in one word or a few;
    - `about`: what the data are, and what is to be known of them;
    - `sizes`: those of a full study;
    - `read`: reads the network and so many of its data;
    - `check`: reads as little as shows that all of it is there;
    - `source`: where `find` found it, if not in the catalogue.

    A network of yours is one in a file of yours: `lowrank-theory transfer mine.py:case`.
    """

    name: str
    title: str
    unit: str
    about: str
    sizes: Sizes
    read: Callable[[Sizes], Loaded]
    check: Callable[[], Any] = lambda: None
    source: str | None = None

    def load(self, sizes: Sizes | None = None) -> Loaded:
        """The network and its data, by default as many as a full study takes.

        Raises `FileNotFoundError` where a file is missing, `ValueError` where one is damaged, and
        `ImportError` without an optional package; they say what to get and where to put it.
        """
        return self.read(sizes or self.sizes)

    def missing(self) -> str | None:
        """What is missing, what to get, and where to put it; `None` where all is there."""
        try:
            self.check()
        except (OSError, ValueError, ImportError) as error:
            return str(error)
        return None


def available(name: str) -> str | None:
    """`None` where a network and its data are there, or else what to get and where to put it.

    Raises `ValueError` for an unknown name.
    """
    return find(name).missing()


def find(name: str) -> Case:
    """The case of this name or, of a `name` such as `folder/mine.py:case`, the one that a file
    holds.

    Raises `ValueError` for an unknown one, a file that is not there or cannot be run, and one that
    holds no such case.
    """
    own = in_file(name)
    if own is not None:
        return _in_file(*own)
    if name not in CASES:
        raise ValueError(
            f"there is no network {name!r}; there are {', '.join(CASES)}, and those of your own, "
            "such as mine.py:case"
        )
    return CASES[name]


def _in_file(path: Path, variable: str) -> Case:
    module = run_file(path)
    case = getattr(module, variable, None)
    if not isinstance(case, Case):
        kinds = [name for name, value in vars(module).items() if isinstance(value, Case)]
        there = f"it holds {', '.join(kinds)}" if kinds else "it holds none"
        which = f"holds no `Case` {variable!r}" if variable else "is a file: name a `Case` in it"
        raise ValueError(f"{path} {which}: {there}")
    return dataclasses.replace(case, source=f"{path}:{variable}")


# --- images ---------------------------------------------------------------------------------------


def _classifier(
    function: Function, parameters: PyTree, data: Dataset | Cifar10, sizes: Sizes
) -> Loaded:
    training, held_out = np.asarray(data.training_images), np.asarray(data.held_out_images)
    images, labels = held_out[: sizes.items], np.asarray(data.held_out_labels)[: sizes.items]
    return Loaded(
        function,
        parameters,
        calibration=_batches(training[: sizes.calibration], sizes.batch),
        held_out=_batches(held_out[: sizes.held_out], sizes.batch),
        units=_batches(held_out[: sizes.units], 1),
        metric=Metric(
            "accuracy",
            larger_is_better=True,
            scores=lambda function, parameters: correct(
                function, parameters, images, labels, batch=sizes.batch
            ),
            value=_mean,
        ),
    )


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _mean(scores: np.ndarray) -> float:
    return float(np.mean(scores))


def _perceptron(
    network: Callable[[], Perceptron], data: Callable[[], Dataset]
) -> Callable[[Sizes], Loaded]:
    return lambda sizes: _classifier(Perceptron.__call__, network(), data(), sizes)


def _residual(depth: int) -> Callable[[Sizes], Loaded]:
    def read(sizes: Sizes) -> Loaded:
        network, parameters = resnet_network(depth)
        return _classifier(network.apply, parameters, cifar10_data(sizes.calibration), sizes)

    return read


def _digits_cnn(sizes: Sizes) -> Loaded:
    network, parameters = digits_cnn_network()
    return _classifier(network.apply, parameters, digits_data(), sizes)


def _alexnet(sizes: Sizes) -> Loaded:
    network, parameters = alexnet_network()
    return _classifier(network.apply, parameters, cifar10_data(sizes.calibration), sizes)


# --- text -----------------------------------------------------------------------------------------


def _character_lstm(sizes: Sizes) -> Loaded:
    """The first three quarters of the text calibrate, the last is held out."""
    network, parameters = character_lstm_network()
    codes = network.encode(shakespeare_text())
    fitted, rest = np.split(codes, [len(codes) * 3 // 4])
    scored = rest[: 1_000 * sizes.items + 101]
    held_out = _shuffled(_windows(rest, max(sizes.held_out, sizes.units)))

    def scores(function: Function, parameters: PyTree) -> np.ndarray:
        return nats_per_character(function, parameters, scored)

    return Loaded(
        network.apply,
        parameters,
        calibration=_batches(_windows(fitted, sizes.calibration), sizes.batch),
        held_out=_batches(held_out[: sizes.held_out], sizes.batch),
        units=_batches(held_out[: sizes.units], 1),
        metric=Metric("nats per character", larger_is_better=False, scores=scores, value=_mean),
    )


def _shuffled(units: np.ndarray) -> np.ndarray:
    """The units as if drawn one by one: neighbours in a text are alike."""
    return units[np.random.default_rng(0).permutation(len(units))]


def _windows(codes: np.ndarray, count: int) -> np.ndarray:
    """So many windows, evenly spread over the text."""
    starts = np.arange(0, len(codes) - WINDOW, WINDOW + APART)
    chosen = starts[np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int)]
    return codes[chosen[:, None] + np.arange(WINDOW)]


def _minilm(sizes: Sizes) -> Loaded:
    """Calibration on sentences of the training part, everything else on the test part."""
    network, parameters = bert_network()
    data = stsb_data()
    fitted, held_out = (_distinct(part.first + part.second) for part in (data.training, data.test))
    pairs = min(sizes.items, len(data.test.scores))
    tokens = bert_tokens(data.test.first[:pairs] + data.test.second[:pairs])
    judged = data.test.scores[:pairs]

    def scores(function: Function, parameters: PyTree) -> np.ndarray:
        embeddings = embed(function, parameters, tokens).astype(np.float64)
        return np.stack([np.sum(embeddings[:pairs] * embeddings[pairs:], axis=1), judged], axis=1)

    return Loaded(
        network.apply,
        parameters,
        calibration=_sentences(fitted, sizes.calibration, sizes.batch),
        held_out=_sentences(held_out, sizes.held_out, sizes.batch),
        units=_sentences(held_out, sizes.units, 1),
        metric=Metric("Spearman correlation", True, scores, _rank_correlation),
        select=_in_a_block,
    )


def _ag_news(sizes: Sizes) -> Loaded:
    """Calibration on texts of the training part, everything else on the test part."""
    network, parameters = news_network()
    data = ag_news_data()
    fitted, held_out = (_distinct(part.texts) for part in (data.training, data.test))
    tokens = bert_tokens(data.test.texts[: sizes.items], length=LENGTH)
    labels = data.test.labels[: sizes.items]

    def scores(function: Function, parameters: PyTree) -> np.ndarray:
        return np.argmax(embed(function, parameters, tokens), axis=1) == labels

    return Loaded(
        network.apply,
        parameters,
        calibration=_sentences(fitted, sizes.calibration, sizes.batch, NEWS_LENGTHS),
        held_out=_sentences(held_out, sizes.held_out, sizes.batch, NEWS_LENGTHS),
        units=_sentences(held_out, sizes.units, 1, NEWS_LENGTHS),
        metric=Metric("accuracy", larger_is_better=True, scores=scores, value=_mean),
        select=_in_a_block,
    )


def _in_a_block(path: str) -> bool:
    return "['layers']" in path and path.endswith("['kernel']")


def _rank_correlation(scores: np.ndarray) -> float:
    found: Any = stats.spearmanr(scores[:, 0], scores[:, 1])
    return float(found.statistic)


def _distinct(texts: tuple[str, ...]) -> list[str]:
    return _shuffled(np.array(list(dict.fromkeys(texts)), object)).tolist()


def _sentences(
    texts: list[str], count: int, batch: int, lengths: tuple[int, ...] = LENGTHS
) -> list[Tokens]:
    """Batches without padding: each sentence is cut to the longest of the `lengths` that it fills.
    Of each length as many are taken as its share of all sentences, and they are spread evenly over
    the batches, so that both halves have the same shares.
    """
    filled = bert_tokens(texts, length=lengths[-1]).mask.sum(axis=1)
    longest = np.searchsorted(lengths, filled, side="right") - 1
    batches = []
    for index, length in enumerate(lengths):
        those = np.flatnonzero(longest == index)
        share = math.ceil(count * len(those) / np.count_nonzero(longest >= 0))
        taken = those[:share]
        if not len(taken):
            continue
        tokens = bert_tokens([texts[row] for row in taken], length=length)
        size = min(batch, len(taken))
        full = len(taken) // size
        for number in range(full):
            rows = slice(number * size, (number + 1) * size)
            place = (number + 0.5) / full
            batches.append((place, Tokens(tokens.ids[rows], tokens.mask[rows])))
    return [tokens for _, tokens in sorted(batches, key=lambda each: each[0])]


# --- all of them ----------------------------------------------------------------------------------

_CIFAR10_ABOUT = (
    "CIFAR-10: calibration on the first training images, errors and accuracy on test images. The "
    "networks were trained on all training images."
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "digits",
            "perceptron 64-256-128-10 on handwritten digits",
            "image",
            "Handwritten digits of 8 × 8 pixels: calibration on the 1,200 images that the network "
            "was trained on, errors and accuracy on the other 597.",
            Sizes(calibration=1_200, held_out=597, units=400, items=597, batch=200),
            _perceptron(digits_network, digits_data),
            digits_network,
        ),
        Case(
            "digits_cnn",
            "four convolutions on handwritten digits",
            "image",
            "Handwritten digits of 8 × 8 pixels: calibration on the 1,200 images that the network "
            "was trained on, errors and accuracy on the other 597. Batch normalisation is kept "
            "apart.",
            Sizes(calibration=1_200, held_out=597, units=400, items=597, batch=200),
            _digits_cnn,
            digits_cnn_network,
        ),
        Case(
            "mnist",
            "perceptron 784-500-10 on MNIST",
            "image",
            "MNIST: calibration on the first training images, errors and accuracy on test images.",
            Sizes(calibration=4_000, held_out=2_000, units=400, items=10_000, batch=500),
            _perceptron(mnist_network, mnist_data),
            lambda: (mnist_network(), mnist_data()),
        ),
        Case(
            "resnet20",
            "ResNet-20 on CIFAR-10",
            "image",
            _CIFAR10_ABOUT,
            Sizes(calibration=500, held_out=250, units=400, items=1_000, batch=50),
            _residual(20),
            lambda: (resnet_network(20), cifar10_data(1)),
        ),
        Case(
            "resnet56",
            "ResNet-56 on CIFAR-10",
            "image",
            _CIFAR10_ABOUT,
            Sizes(calibration=300, held_out=150, units=400, items=1_000, batch=50, passes=28),
            _residual(56),
            lambda: (resnet_network(56), cifar10_data(1)),
        ),
        Case(
            "alexnet",
            "AlexNet for CIFAR-10",
            "image",
            _CIFAR10_ABOUT,
            Sizes(calibration=2_000, held_out=500, units=400, items=1_000, batch=100),
            _alexnet,
            lambda: (alexnet_network(), cifar10_data(1)),
        ),
        Case(
            "char_lstm",
            "two-layer LSTM on characters of Shakespeare",
            f"window of {WINDOW} characters",
            "The text that comes with the network, of which it probably was trained on all: "
            "calibration on the first three quarters, errors and nats per character on the last. "
            f"Windows stand at least {APART} characters apart, so that they are nearly "
            "independent.",
            Sizes(calibration=400, held_out=200, units=400, items=100, batch=50),
            _character_lstm,
            lambda: (character_lstm_network(), shakespeare_text()),
        ),
        Case(
            "minilm",
            "all-MiniLM-L6-v2, the weights of its six blocks",
            "sentence",
            "STS-B: calibration on sentences of the training part, errors and correlation on the "
            "test part. The network was trained on other texts. To calibrate without padding, a "
            f"sentence is cut to the longest of {', '.join(map(str, LENGTHS))} tokens that it "
            "fills; the correlation is that of whole sentences.",
            Sizes(calibration=1_000, held_out=400, units=400, items=1_379, batch=50),
            _minilm,
            lambda: (bert_network(), stsb_data(), bert_tokens(["one"])),
        ),
        Case(
            "ag_news",
            "all-MiniLM-L6-v2 fine-tuned to AG News, the weights of its six blocks",
            "text",
            "AG News: calibration on texts of the training part, most of which the network was "
            "trained on, errors and accuracy on the test part. To calibrate without padding, a "
            f"text is cut to the longest of {', '.join(map(str, NEWS_LENGTHS))} tokens that it "
            f"fills; the accuracy is that of texts cut to {LENGTH}.",
            Sizes(calibration=500, held_out=200, units=200, items=1_000, batch=50),
            _ag_news,
            lambda: (news_network(), ag_news_data(), bert_tokens(["one"])),
        ),
    )
}
"""The networks by name."""
