"""Flax NNX models under the rules: layers in place of `nnx.Linear` and `nnx.Conv`, and a swap by path."""

try:
    from flax import nnx as _nnx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lax_learning.flax: expected flax >= 0.12.8, got none; pip install 'lax_learning[flax]'"
    ) from error

from lax_learning.flax.conversion import convert
from lax_learning.flax.decorrelation import Decorrelation, update_decorrelation
from lax_learning.flax.feedback import FeedbackAlignment, KolenPollack, SignSymmetry
from lax_learning.flax.k_cap import KCap
from lax_learning.flax.layers import Conv, Decorrelating, Feedback, LayerRule, LearnedFeedback, Linear
from lax_learning.flax.taps import Taps, value_and_grad

__all__ = [
    "Conv",
    "Decorrelating",
    "Decorrelation",
    "Feedback",
    "FeedbackAlignment",
    "KCap",
    "KolenPollack",
    "LayerRule",
    "LearnedFeedback",
    "Linear",
    "SignSymmetry",
    "Taps",
    "convert",
    "update_decorrelation",
    "value_and_grad",
]
