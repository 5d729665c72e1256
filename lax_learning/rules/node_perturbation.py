"""Node perturbation: the change of the loss times the noise on the units, a teaching signal for each."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    check_choice,
    check_flag,
    check_positive,
    check_resolved,
    check_samples,
    check_scalar,
)
from lax_learning._precision import is_half, raised
from lax_learning.estimators._draws import mean_over_draws, scaled
from lax_learning.feedback import init_forward
from lax_learning.networks import Network
from lax_learning.noise import Noise, as_noise
from lax_learning.rules._delta import check_problem, checked_losses, delta_rule, per_example
from lax_learning.types import Key, Loss, Params, Rule, Signals

Layers = tuple[Array, ...]


class _Pass(NamedTuple):
    """A noisy pass: presynaptic inputs, the values the noise went into, and the output."""

    inputs: Layers
    values: Layers
    output: Array


def _noise_on_pre_activations(network: Network, params: Params, x: Array, noise: Layers | None) -> _Pass:
    trace = network.forward(params, x, noise)
    return _Pass(trace.inputs, trace.pre_activations, trace.output)


def _noise_on_activities(network: Network, params: Params, x: Array, noise: Layers | None) -> _Pass:
    trace = network.forward(params, x, activity_taps=noise)
    for i, (z, a) in enumerate(zip(trace.pre_activations, trace.activities, strict=True)):
        if a.shape != z.shape:
            raise ValueError(
                f"network.layers[{i}].activation: expected one that keeps the shape {list(z.shape)}, "
                f"as noise on activities needs (variant='tutorial'), got {list(a.shape)}"
            )
    return _Pass(trace.inputs, trace.activities, trace.output)


def _by_noise(noise: Layers, change: Layers) -> Layers:
    return noise


def _by_change(noise: Layers, change: Layers) -> Layers:
    return change


def _by_normalised_change(noise: Layers, change: Layers) -> Layers:
    num_units = sum(c[0].size for c in change)
    square_norm = sum(jnp.sum(jnp.square(c), axis=tuple(range(1, c.ndim))) for c in change)
    guard = num_units * float(jnp.finfo(change[0].dtype).eps)
    return per_example(num_units / jnp.maximum(square_norm, guard), change)


class _Variant(NamedTuple):
    """Place of the noise, what the credit is proportional to, and which inputs the synapse sees.

    `credit` takes the noise and the change of the values it went into, both in units of sigma.
    """

    run: Callable[[Network, Params, Array, Layers | None], _Pass]
    credit: Callable[[Layers, Layers], Layers]
    sees_noisy_inputs: bool


_VARIANTS = {
    "unbiased": _Variant(_noise_on_pre_activations, _by_noise, False),
    "tutorial": _Variant(_noise_on_activities, _by_change, True),
    "activity": _Variant(_noise_on_pre_activations, _by_normalised_change, False),
}


def node_perturbation(
    network: Network,
    loss: Loss,
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    antithetic: bool = False,
    layerwise: bool = False,
    share_noise: bool = False,
    variant: str = "unbiased",
    noise: str | Noise = "normal",
) -> Rule:
    """Perturbs all units at once and credits each with the change of the loss, example by example.

    `delta_l = 1/K sum_k (l(xi_k) - l(0)) xi_kl / sigma^2`, `xi ~ N(0, sigma^2)` on the pre-activations,
    `dw_l = x_l^T delta_l / batch`, with the clean `x_l`. For one example of a linear network
    `Var[g_ij] = delta_i^2 x_j^2 + x_j^2 |delta|^2`: it grows with the number of units. What a synapse
    needs to know: its input, the noise of its unit, and one number for all.

    Variants:
      "unbiased": the form above.
      "tutorial": as the notebook computes it. Noise goes onto the activities, after the activation
        function, whose derivative is left out; the credit is that of the measured change of the
        activity, which contains noise that came from below; the synapse sees the noisy input. Biased;
        not for activations that pool or reshape.
      "activity": `delta = N dl dz / |dz|^2`, with `dz` the measured change of the pre-activations of all
        N units; needs no knowledge of sigma, and is biased.

    In half precision noise would be rounded away in the sums and activities: the passes then run in float32,
    on the same weights, and the signals come back in the dtype of the network.

    Args:
      network: the network.
      loss: per-example loss.
      sigma: standard deviation of the noise, in the units of the pre-activations; may be traced.
      num_samples: number K of draws; the signals are averaged, one draw in memory at a time, and pulled
        back once.
      antithetic: use the pair xi, -xi and half their difference: one more pass, no even error terms.
      layerwise: perturb one layer at a time, with a pass for each (iterative node perturbation).
      share_noise: use the same noise for all examples of a batch.
      variant: "unbiased", "tutorial" or "activity".
      noise: "normal", "rademacher" or a function `(key, like) -> unit noise`, one array a layer.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind, or flags that are no bools.
      ValueError: if sigma <= 0, K < 1, variant or noise are unknown, sigma is 0 or infinite in the dtype of
        the network, or the tutorial's variant, whose input and signal are both noisy, is asked for averages
        over draws or passes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = ll.node_perturbation(ll.mlp((3, 4, 2)), ll.squared_error, sigma=0.1, num_samples=4)
      >>> key = jax.random.key(0)
      >>> loss, grads = rule.value_and_grad(key, rule.init(key), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads[0]["w"].shape
      (3, 4)

    References:
      Le Cun, Galland, Hinton, GEMINI: gradient estimation through matrix inversion after noise
      injection,
      https://proceedings.neurips.cc/paper/1988/hash/a0a080f42e6f13b3a2df133f073095dd-Abstract.html, 1988.
      Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward
      networks, https://doi.org/10.1162/089976605774320539, 2005.
      Dalm et al., Effective learning with node perturbation in multi-layer neural networks,
      https://arxiv.org/abs/2310.00965, 2023 (activity-based and iterative forms).
    """
    check_problem(network, loss)
    check_positive("sigma", sigma)
    check_scalar("sigma", sigma)
    for name, flag in (("antithetic", antithetic), ("layerwise", layerwise), ("share_noise", share_noise)):
        check_flag(name, flag)
    check_samples("num_samples", num_samples)
    check_choice("variant", variant, _VARIANTS)
    run, credit, sees_noisy_inputs = _VARIANTS[variant]
    if sees_noisy_inputs and (num_samples > 1 or antithetic or layerwise):
        raise ValueError(
            f"variant: {variant!r} multiplies noisy inputs with noisy signals, expected num_samples=1, "
            f"antithetic=False, layerwise=False, got {num_samples}, {antithetic}, {layerwise}"
        )
    draw_noise = as_noise(noise)

    def draw_layers(key: Key, clean: Layers, scale: Array) -> Layers:
        shapes = tuple((1, *v.shape[1:]) if share_noise else v.shape for v in clean)
        like = tuple(jax.ShapeDtypeStruct(s, v.dtype) for s, v in zip(shapes, clean, strict=True))
        drawn = draw_noise(key, like)
        return tuple(
            jnp.broadcast_to(scaled(scale, n), v.shape).astype(v.dtype)
            for n, v in zip(drawn, clean, strict=True)
        )

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        halves = [v.dtype for v in jax.tree.leaves((params, x)) if is_half(v.dtype)]
        if not halves:
            return of_passes(key, params, x, y, weight)
        check_resolved("sigma", sigma, *halves)
        like = jax.eval_shape(lambda params, x: run(network, params, x, None), params, x)
        wide, wide_x = jax.tree.map(lambda v: v.astype(raised(v)), (params, x))
        losses, inputs, deltas = of_passes(key, wide, wide_x, y, weight)
        return Signals(losses, _cast(inputs, like.inputs), _cast(deltas, like.values))

    def of_passes(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        clean = run(network, params, x, None)
        losses = checked_losses(loss, clean.output, y)
        check_resolved("sigma", sigma, losses.dtype)
        scale = jnp.asarray(sigma, losses.dtype)
        every = range(len(network.layers))
        groups = [(i,) for i in every] if layerwise else [tuple(every)]

        def perturb(noise: Layers, group: tuple[int, ...]) -> tuple[Layers, Layers]:
            """The signals of a group of layers from noise in these alone, and the inputs of that pass."""
            noise = tuple(n if i in group else jnp.zeros_like(n) for i, n in enumerate(noise))
            plus = run(network, params, x, noise)
            change, change_of_loss = _differences(plus.values, clean.values), losses_of(plus) - losses
            if antithetic:
                minus = run(network, params, x, tuple(-n for n in noise))
                change = tuple(c / 2 for c in _differences(plus.values, minus.values))
                change_of_loss = (losses_of(plus) - losses_of(minus)) / 2
            of_group = (tuple(scaled(1 / scale, v[i]) for i in group) for v in (noise, change))
            return per_example(weight * (change_of_loss / scale), credit(*of_group)), plus.inputs

        def losses_of(noisy: _Pass) -> Array:
            return checked_losses(loss, noisy.output, y)

        def draw(key: Key) -> tuple[Layers, Layers]:
            noise = draw_layers(key, clean.values, scale)
            passes = [perturb(noise, group) for group in groups]
            deltas = tuple(delta for of_group, _ in passes for delta in of_group)
            return deltas, passes[0][1] if sees_noisy_inputs else ()

        deltas, noisy_inputs = mean_over_draws(draw, key, num_samples)
        return Signals(losses, noisy_inputs or clean.inputs, deltas)

    return delta_rule(network, partial(init_forward, network), signals)


def _cast(values: Layers, like: Layers) -> Layers:
    return tuple(v.astype(other.dtype) for v, other in zip(values, like, strict=True))


def _differences(values: Layers, others: Layers) -> Layers:
    return tuple(v - o for v, o in zip(values, others, strict=True))
