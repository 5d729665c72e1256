"""MNIST-1D, drawn from a key: ten curves of 40 points, stretched, shifted, sheared and noisy."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning.data.types import Splits, drawn_splits
from lax_learning.types import Key

TEMPLATES = np.array([
    [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5], [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
    [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5], [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
    [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5], [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
    [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5], [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5], [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
])  # fmt: skip
"""Heights of the ten curves."""
_SCALED = TEMPLATES / TEMPLATES.std(axis=1, keepdims=True)
_CURVES = (_SCALED - _SCALED[:, :1]) / 6  # from 0 to 0
PADDING, LENGTH, POINTS, MOST_SHIFT = (36, 60), 72, 40, 48
SCALE, SMOOTH_NOISE, NOISE, SHEAR = 0.4, 0.25, 0.02, 0.75


def mnist1d(key: Key, *, sizes: Sequence[int] = (4_000, 0, 1_000)) -> Splits:
    """Draws MNIST-1D, a small problem that separates architectures more clearly than MNIST.

    Ten curves of 12 points are padded, stretched to 72 points, scaled, shifted, filled with smooth noise
    outside the curve and with white noise everywhere, sheared, and sampled at 40 points. Over all splits
    together, inputs have mean 0 and standard deviation 1, and classes are as balanced as possible. Test
    accuracies in the paper: logistic regression 32 %, multilayer perceptron 68 %, convolutional network 94 %,
    recurrent network 91 %. `sizes` are the numbers of training, validation and test examples.

    Follows the public generator, but not its random numbers; a pure function of the key.

    Returns:
      Splits of `x [examples, 40]` and one-hot `y [examples, 10]`, float32.

    Example:
      >>> mnist1d(jax.random.key(0), sizes=(30, 0, 10)).train.x.shape
      (30, 40)

    References:
      Greydanus, Kobak, Scaling down deep learning with MNIST-1D, https://arxiv.org/abs/2011.14439, 2020.
    """
    check_key("key", key)
    order_key, key = jax.random.split(key)

    def draw(number: int) -> tuple[Array, Array]:
        labels = jax.random.permutation(order_key, jnp.arange(number) % len(TEMPLATES))
        x = jax.vmap(lambda key, label: _example(label, **_draws(key)))(jax.random.split(key, number), labels)
        x = ((x - jnp.mean(x)) / jnp.std(x)).astype(jnp.float32)
        return x, jax.nn.one_hot(labels, len(TEMPLATES), dtype=x.dtype)

    return drawn_splits(draw, sizes, LENGTH)


def _draws(key: Key) -> dict[str, Array]:
    """Draws the random numbers of an example: padding and shift are in points of the stretched curve."""
    keys = jax.random.split(key, 6)
    return {
        "padding": jax.random.randint(keys[0], (), PADDING[0], PADDING[1] + 1),
        "scale": 1 + SCALE * (jax.random.uniform(keys[1]) - 0.5),
        "shear": SHEAR * (jax.random.uniform(keys[2]) - 0.5),
        "shift": jax.random.randint(keys[3], (), 0, MOST_SHIFT),
        "smooth": SMOOTH_NOISE * jax.random.normal(keys[4], (LENGTH,)),
        "noise": NOISE * jax.random.normal(keys[5], (LENGTH,)),
    }


def _example(
    label: Array, padding: Array, scale: Array, shear: Array, shift: Array, smooth: Array, noise: Array
) -> Array:
    """Returns the 40 points of an example."""
    curve = jnp.append(jnp.asarray(_CURVES, jnp.float32)[label], 0.0)
    last = len(curve) - 1
    at = jnp.linspace(0.0, 1.0, LENGTH) * (last - 1 + padding)
    x = jnp.roll(scale * jnp.interp(at, jnp.arange(last + 1.0), curve), shift)
    x = jnp.where(jnp.roll(at < last, shift), x, _smooth(smooth)) + noise
    x = x - shear * jnp.linspace(-0.5, 0.5, LENGTH)
    return jnp.interp(jnp.linspace(0, LENGTH - 1.0, POINTS), jnp.arange(1.0 * LENGTH), x)


def _smooth(noise: Array) -> Array:
    """Smooths noise by a Gaussian window of standard deviation 2, with reflection at the ends."""
    offsets = np.arange(-8, 9)
    window = np.exp(-(offsets**2) / 8)
    padded = jnp.pad(noise, 8, mode="symmetric")
    return jnp.convolve(padded, jnp.asarray(window / window.sum(), noise.dtype), mode="valid")
