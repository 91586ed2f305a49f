"""A perceptron 784-500-10 and the MNIST images, read from a folder of the user's, see `LAYOUT`.

On the 10,000 test images the network is right 9,831 times.
"""

import gzip
import math
import zlib

import jax.numpy as jnp
import numpy as np

from lowrank_theory.models._sources import Source
from lowrank_theory.models.perceptron import Dataset, Perceptron

LAYOUT = """\
  mnist/train-images-idx3-ubyte.gz, mnist/train-labels-idx1-ubyte.gz,
  mnist/t10k-images-idx3-ubyte.gz, mnist/t10k-labels-idx1-ubyte.gz
    as they are at https://ossci-datasets.s3.amazonaws.com/mnist/
  mnist_mlp/mnist_mlp.npz
    with fc1.weight (500, 784), fc1.bias (500,), fc2.weight (10, 500), fc2.bias (10,): the PyTorch
    state dict examples/mnist/models/mnist/mnist_model.state_dict of github.com/ggml-org/ggml at
    commit 73999158eee3d493585fad2262a6675e7de90f8b, saved with numpy.savez."""

_IMAGES = Source("mnist", LAYOUT)
_NETWORK = Source("mnist_mlp", LAYOUT)
_FILE = "mnist_mlp.npz"


def _read_idx(name: str, *shape: int) -> np.ndarray:
    """The bytes of a gzipped IDX file: two zeros, the type (8), the number of axes, the axes as
    big-endian 32-bit integers, and the data.
    """
    path = _IMAGES.find(name)
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)  # one more: where there is none, the end is checked
    except (OSError, EOFError, zlib.error) as error:
        raise _IMAGES.damaged(path, error) from error
    if not content.startswith(header) or len(content) != size:
        raise _IMAGES.damaged(path, f"it is not an IDX file of {shape} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def mnist_network() -> Perceptron:
    """The trained network, in float32. Its hidden layer is as wide as the file has it.

    Raises `FileNotFoundError` where the file is missing and `ValueError` where it is damaged; both
    say which file, and where to get it.
    """
    hidden = _NETWORK.shapes(_FILE).size("fc1.weight")
    arrays = _NETWORK.arrays(_FILE, _shapes(hidden))
    return Perceptron(
        [jnp.asarray(arrays[f"{layer}.weight"].T) for layer in ("fc1", "fc2")],
        [jnp.asarray(arrays[f"{layer}.bias"]) for layer in ("fc1", "fc2")],
    )


def _shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "fc1.weight": (hidden, 784),
        "fc1.bias": (hidden,),
        "fc2.weight": (10, hidden),
        "fc2.bias": (10,),
    }


def mnist_data() -> Dataset:
    """The 60,000 training rows and the 10,000 test rows of 784 pixels (220 MB in float32).

    Raises as `mnist_network` does.
    """

    def part(prefix: str, samples: int) -> tuple:
        images = _read_idx(f"{prefix}-images-idx3-ubyte.gz", samples, 28, 28)
        labels = _read_idx(f"{prefix}-labels-idx1-ubyte.gz", samples)
        pixels = images.reshape(samples, 784) / np.float32(255)
        return jnp.asarray(pixels), jnp.asarray(labels, jnp.int32)

    return Dataset(*part("train", 60_000), *part("t10k", 10_000))
