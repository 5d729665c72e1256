"""Metrics of gradients and weights, as plain functions of pytrees; per layer or in total.

Cosines, angles and relative norms do not depend on the scale of gradients, over the whole range of their
dtype. Any NaN gives NaN. Leaves may be floating-point arrays, numbers and integers of up to 16 bits.
"""

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

__all__ = ["angle_degrees", "by_path", "cosine_similarity", "inner_product", "pairwise_cosine"]
__all__ += ["relative_norm", "resolved_cosine", "rounding_error", "weight_alignment"]
__all__ += ["Scales", "depth_scales", "steps_to_decrease", "train_only"]
__all__ += ["SNR", "BiasVariance", "Estimate", "Moments", "bias_variance", "draw_moments", "example_moments"]
__all__ += ["product_moments", "snr", "stacked_moments", "streamed_moments"]
