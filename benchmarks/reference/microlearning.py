"""Updates of a two-layer sigmoid network in NumPy, after the microlearning tutorial.

Arrays have features first, `[units, batch]`, and the bias is the last column of a weight matrix. Updates are
*added* to the weights. Noise is an argument, with standard deviation sigma.

The cost is that of the tutorial: the SNR stores one gradient per example, and node perturbation holds two
arrays of outer products of all examples, `[hidden, inputs + 1, batch]` (628 MB each for 784-500-10 and a
batch of 200), so its time depends on memory allocation: 0.2 s per update with huge pages, and 0.9 s without.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
DECAY = 0.1


class Weights(NamedTuple):
    """Weights of the network, or an update of them."""

    hidden: Array  # [hidden, inputs + 1]
    output: Array  # [outputs, hidden + 1]
    feedback: Array  # [hidden, outputs]


Noise = tuple[Array, Array]
"""Noise for the hidden and for the output layer."""


def with_bias(a: Array) -> Array:
    """Appends a unit that is always 1."""
    return np.append(a, np.ones((1, a.shape[1])), axis=0)


def sigmoid(z: Array) -> Array:
    """Returns `1 / (1 + exp(-z))`."""
    return 1 / (1 + np.exp(-z))


def forward(weights: Weights, x: Array, noise: Noise | None = None) -> tuple[Array, Array]:
    """Returns hidden activities and output, with noise added to both."""
    hidden = sigmoid(weights.hidden @ with_bias(x))
    if noise is not None:
        hidden = hidden + noise[0]
    output = sigmoid(weights.output @ with_bias(hidden))
    if noise is not None:
        output = output + noise[1]
    return hidden, output


def losses(output: Array, t: Array) -> Array:
    """Returns the squared error of every example, `[batch]`."""
    return np.sum((t - output) ** 2, axis=0)


def _carried_back(weights: Weights, carrier: Array, x: Array, t: Array) -> Weights:
    """Returns the update if the output error reaches the hidden units through `carrier [hidden, outputs]`."""
    hidden, output = forward(weights, x)
    delta = (t - output) * output * (1 - output)
    of_hidden = ((carrier @ delta) * hidden * (1 - hidden)) @ with_bias(x).T
    return Weights(of_hidden, delta @ with_bias(hidden).T, np.zeros_like(weights.feedback))


def backprop(weights: Weights, x: Array, t: Array, noise: Noise, sigma: float) -> Weights:
    """Backprop, summed over the batch, without the factor 2 of the squared error."""
    return _carried_back(weights, weights.output[:, :-1].T, x, t)


def feedback_alignment(weights: Weights, x: Array, t: Array, noise: Noise, sigma: float) -> Weights:
    """Feedback alignment: the error passes back through fixed weights."""
    return _carried_back(weights, weights.feedback, x, t)


def kolen_pollack(weights: Weights, x: Array, t: Array, noise: Noise, sigma: float) -> Weights:
    """Kolen-Pollack: the same update for output weights and feedback, with decay."""
    hidden, output, _ = _carried_back(weights, weights.feedback, x, t)
    feedback = output[:, :-1].T - DECAY * weights.feedback
    return Weights(hidden, output - DECAY * weights.output, feedback)


def weight_perturbation(weights: Weights, x: Array, t: Array, noise: Noise, sigma: float) -> Weights:
    """Weight perturbation: the change of the mean loss times the noise of the weights."""
    perturbed = Weights(weights.hidden + noise[0], weights.output + noise[1], weights.feedback)
    now = np.mean(losses(forward(weights, x)[1], t))
    then = np.mean(losses(forward(perturbed, x)[1], t))
    change = now - then
    hidden, output = (change * each / sigma**2 for each in noise)
    return Weights(hidden, output, np.zeros_like(weights.feedback))


def node_perturbation(weights: Weights, x: Array, t: Array, noise: Noise, sigma: float) -> Weights:
    """Node perturbation: the change of each loss times the change of the activities times the inputs."""
    hidden, output = forward(weights, x)
    noisy_hidden, noisy_output = forward(weights, x, noise)
    change = losses(output, t) - losses(noisy_output, t)

    def mean_product(moved: Array, inputs: Array) -> Array:
        each = (moved / sigma**2)[:, None, :] * with_bias(inputs)[None, :, :]
        return np.mean(change * each, axis=2)

    return Weights(
        mean_product(noisy_hidden - hidden, x),
        mean_product(noisy_output - output, noisy_hidden),
        np.zeros_like(weights.feedback),
    )


def draw(rule: str, rng: np.random.Generator, weights: Weights, batch_size: int, sigma: float) -> Noise:
    """Draws a number for each weight, or for each unit and example, or none, as the rule needs them."""
    shapes = (0,), (0,)
    if rule == "weight_perturbation":
        shapes = weights.hidden.shape, weights.output.shape
    elif rule == "node_perturbation":
        shapes = (len(weights.hidden), batch_size), (len(weights.output), batch_size)
    hidden, output = (rng.normal(0, sigma, shape) for shape in shapes)
    return hidden, output


RULES: dict[str, Callable[[Weights, Array, Array, Noise, float], Weights]] = {
    rule.__name__: rule
    for rule in (backprop, feedback_alignment, kolen_pollack, weight_perturbation, node_perturbation)
}
"""Functions `(weights, x, t, noise, sigma) -> update` for a learning rate of 1."""


def add(weights: Weights, update: Weights, learning_rate: float) -> None:
    """Adds an update in place."""
    for w, change in zip(weights, update, strict=True):
        w += learning_rate * change


def snr(rule: str, weights: Weights, x: Array, t: Array, draw: Callable[[int], Noise], sigma: float) -> float:
    """Returns `mean(|mean| / (std + 0.001))` over the updates of the hidden weights by single examples.

    `x` is `[inputs, examples]`, `t` is `[outputs, examples]`, and `draw(example)` returns noise for a batch
    of one.
    """
    count = x.shape[1]
    held = np.zeros((count, *weights.hidden.shape))
    for i in range(count):
        held[i] = RULES[rule](weights, x[:, [i]], t[:, [i]], draw(i), sigma).hidden
    return float(np.mean(np.abs(np.mean(held, axis=0)) / (np.std(held, axis=0) + 1e-3)))
