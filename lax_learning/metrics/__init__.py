"""Metrics: plain functions of gradients and weights, per layer and in total."""

from lax_learning.metrics.alignment import (
    angle_degrees,
    by_path,
    cosine_similarity,
    inner_product,
    relative_norm,
    weight_alignment,
)
from lax_learning.metrics.moments import Moments, stacked_moments, streamed_moments
from lax_learning.metrics.quality import SNR, BiasVariance, Estimate, bias_variance, snr
from lax_learning.metrics.sources import draw_moments, example_moments, product_moments

__all__ = [
    "SNR",
    "BiasVariance",
    "Estimate",
    "Moments",
    "angle_degrees",
    "bias_variance",
    "by_path",
    "cosine_similarity",
    "draw_moments",
    "example_moments",
    "inner_product",
    "product_moments",
    "relative_norm",
    "snr",
    "stacked_moments",
    "streamed_moments",
    "weight_alignment",
]
