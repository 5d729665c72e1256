"""A step of gradient descent with birth and death of neurons, neuron by neuron (Rotskoff et al., 2019).

Student `f(x) = sum_i c_i relu(w_i . x)`, mean squared error; after every step neurons with `V = c dL/dc > 0`
are killed and become copies of survivors, those with V < 0 are copied over others, each with probability
`alpha |V|`. As published: gradients from before the step with charges from after it, and each clone draws its
own slot.
"""

from typing import NamedTuple

import numpy as np


class Neurons(NamedTuple):
    """A network of one hidden layer: weights `w [neurons, features]`, charges `c [neurons]`."""

    w: np.ndarray
    c: np.ndarray


class Draws(NamedTuple):
    """Uniform numbers in 0..1, one a neuron and purpose, each `[neurons]`."""

    kill: np.ndarray
    survivor: np.ndarray
    clone: np.ndarray
    slot: np.ndarray


def output(neurons: Neurons, x: np.ndarray) -> np.ndarray:
    """`f(x)`, `[batch]`."""
    return np.maximum(x @ neurons.w.T, 0) @ neurons.c


def draw_inputs(rng: np.random.Generator, batch_size: int, num_features: int) -> np.ndarray:
    """Points on the unit sphere, `[batch, features]`."""
    x = rng.standard_normal((batch_size, num_features))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def gradients(neurons: Neurons, x: np.ndarray, y: np.ndarray) -> Neurons:
    """Of the mean squared error."""
    z = x @ neurons.w.T
    hidden = np.maximum(z, 0)
    error = 2 * (hidden @ neurons.c - y) / len(y)
    return Neurons((np.outer(error, neurons.c) * (z > 0)).T @ x, hidden.T @ error)


def _pick(u: float, candidates: list[int]) -> int:
    return candidates[min(int(u * len(candidates)), len(candidates) - 1)]


def resample(neurons: Neurons, rates: np.ndarray, draws: Draws, alpha: float) -> tuple[int, int]:
    """Kills and clones, in place; returns how many of each."""
    count = len(rates)
    killed = [i for i in range(count) if rates[i] > 0 and draws.kill[i] < alpha * rates[i]]
    survivors = [i for i in range(count) if i not in killed]
    if not survivors:
        killed = []
    for i in killed:
        origin = _pick(draws.survivor[i], survivors)
        neurons.w[i], neurons.c[i] = neurons.w[origin], neurons.c[origin]
    cloned = [i for i in range(count) if rates[i] < 0 and draws.clone[i] < -alpha * rates[i]]
    others = [i for i in range(count) if i not in cloned]
    for i in cloned if others else []:
        slot = _pick(draws.slot[i], others)
        neurons.w[slot], neurons.c[slot] = neurons.w[i], neurons.c[i]
    return len(killed), len(cloned)


def step(
    neurons: Neurons, x: np.ndarray, y: np.ndarray, draws: Draws, learning_rate: float, alpha: float
) -> tuple[int, int]:
    """One step on `x [batch, features]` and `y [batch]`, in place; returns kills and clones."""
    slopes = gradients(neurons, x, y)
    for values, slope in zip(neurons, slopes, strict=True):
        values -= learning_rate * slope
    return resample(neurons, neurons.c * slopes.c, draws, alpha)
