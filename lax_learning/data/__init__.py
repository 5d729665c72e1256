"""Data sets as NumPy arrays, and the order in which a run sees them."""

from lax_learning.data._batches import Batches, BatchState, batches
from lax_learning.data._idx_images import idx_images
from lax_learning.data._mnist import mnist
from lax_learning.data._mnist1d import mnist1d
from lax_learning.data._random import Planted, half_space, planted, relu_net
from lax_learning.data._sequences import Sequences, copy_memory, cue_accumulation, delayed_match
from lax_learning.data._sklearn import sklearn_digits
from lax_learning.data.idx import read_idx
from lax_learning.data.prepared import prepare_tfds
from lax_learning.data.types import Dataset, Splits, one_hot

__all__ = [
    "BatchState",
    "Batches",
    "Dataset",
    "Planted",
    "Sequences",
    "Splits",
    "batches",
    "copy_memory",
    "cue_accumulation",
    "delayed_match",
    "half_space",
    "idx_images",
    "mnist",
    "mnist1d",
    "one_hot",
    "planted",
    "prepare_tfds",
    "read_idx",
    "relu_net",
    "sklearn_digits",
]
