"""Data sets as NumPy arrays, and the order in which a run sees them."""

from lax_learning.data._batches import Batches, BatchState, batches
from lax_learning.data._idx_images import idx_images
from lax_learning.data._mnist import mnist, sklearn_digits
from lax_learning.data._mnist1d import mnist1d
from lax_learning.data._random import Planted, half_space, planted, relu_net
from lax_learning.data._sequences import Sequences, copy_memory, cue_accumulation, delayed_match
from lax_learning.data.idx import read_idx
from lax_learning.data.prepared import prepare_tfds
from lax_learning.data.types import Dataset, Splits, one_hot

__all__ = ["BatchState", "Batches", "Dataset", "Splits", "batches", "one_hot"]
__all__ += ["idx_images", "mnist", "prepare_tfds", "read_idx", "sklearn_digits"]
__all__ += ["Planted", "half_space", "mnist1d", "planted", "relu_net"]
__all__ += ["Sequences", "copy_memory", "cue_accumulation", "delayed_match"]
