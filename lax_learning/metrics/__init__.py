"""Metrics: plain functions of gradients and weights, per layer and in total."""

from lax_learning.metrics.alignment import (
    angle_degrees,
    by_path,
    cosine_similarity,
    inner_product,
    relative_norm,
    weight_alignment,
)
from lax_learning.metrics.diagnostics import (
    Scales,
    depth_scales,
    pairwise_cosine,
    steps_to_decrease,
    train_only,
)
from lax_learning.metrics.moments import Moments, stacked_moments, streamed_moments
from lax_learning.metrics.quality import SNR, BiasVariance, Estimate, bias_variance, snr
from lax_learning.metrics.rounding import resolved_cosine, rounding_error
from lax_learning.metrics.sources import draw_moments, example_moments, product_moments

__all__ = [
    "SNR",
    "BiasVariance",
    "Estimate",
    "Moments",
    "Scales",
    "angle_degrees",
    "bias_variance",
    "by_path",
    "cosine_similarity",
    "depth_scales",
    "draw_moments",
    "example_moments",
    "inner_product",
    "pairwise_cosine",
    "product_moments",
    "relative_norm",
    "resolved_cosine",
    "rounding_error",
    "snr",
    "stacked_moments",
    "steps_to_decrease",
    "streamed_moments",
    "train_only",
    "weight_alignment",
]
