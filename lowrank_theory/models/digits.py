"""The embedded network: 64-256-128-10, trained on 1,200 handwritten digits of 8 x 8 pixels.

Three pixels are blank in every image and others nearly so: the first layer's activations are rank
deficient, as real ones often are. `experiments/train_digits.py` made the file, `data/README.md`
says where the images come from.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowrank_theory.models._sources import embedded
from lowrank_theory.models.perceptron import Dataset, Perceptron

FILE = Path(__file__).with_name("data") / "digits.npz"
SHA256 = "8ce1fd93684284ccec6787ddf28aae60dc813451d067029453b32b86662743f6"
BRIGHTEST = 16


def digits_network() -> Perceptron:
    """The trained network, in float32.

    Raises `ValueError` where the embedded file is damaged.
    """
    stored = embedded(FILE, SHA256)
    layers = range(sum(name.startswith("weights_") for name in stored))
    return Perceptron(
        [jnp.asarray(stored[f"weights_{layer}"]) for layer in layers],
        [jnp.asarray(stored[f"bias_{layer}"]) for layer in layers],
    )


def digits_data() -> Dataset:
    """The 1,200 training rows and the 597 held-out rows of 64 pixels.

    Raises `ValueError` where the embedded file is damaged.
    """
    stored = embedded(FILE, SHA256)
    images = jnp.asarray(stored["images"] / np.float32(BRIGHTEST))
    labels = jnp.asarray(stored["labels"], jnp.int32)
    training = stored["training"]
    return Dataset(images[training], labels[training], images[~training], labels[~training])
