"""Three-factor rule: the noise of a unit, its inputs, and a delayed reward."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from lax_learning import _checks as checks
from lax_learning._precision import widened
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.estimators._draws import as_gradient
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.online._influence import through_steps
from lax_learning.online._recurrent import Recurrent, as_model, check_examples, check_net, first, steps_first
from lax_learning.rules._common import check_wide, losses_of, stateless
from lax_learning.rules._feedback import check_state
from lax_learning.types import Key, Loss, Online, Params, Rule


class ThreeFactorState(NamedTuple):
    """State of the rule: the running mean of the loss at each step of a sequence, `[steps]`."""

    baseline: Array


class ThreeFactorMemory(NamedTuple):
    """Memory between steps: the noisy state, eligibility traces `[batch, *weight]`, and the step number."""

    h: Any
    eligibility: PyTree
    t: Array


def three_factor(
    net: Recurrent,
    loss: Loss,
    *,
    sigma: ArrayLike,
    decay: ArrayLike = 1.0,
    rate: ArrayLike = 0.1,
    modulator: Callable[[Array, Array], Array] = operator.sub,
    noise: NoiseLike = "normal",
) -> Rule:
    """Node perturbation over time: an eligibility trace of noise times input, modulated by a reward.

    `E_t = decay E_{t-1} + [x_t, h_{t-1}]^T xi_t / sigma^2`, `dw = sum_t (loss_t - baseline_t) E_t`

    Noise `xi_t ~ N(0, sigma^2)` is added to every pre-activation of cell and readout at every step. It
    changes the state: the network that is trained, and whose loss is returned, is the noisy one. With
    `decay=1`, the expected update is the gradient of its expected loss, and of the loss as sigma -> 0;
    with less, credit for noise `k` steps ago is scaled by `decay^k`. Works with any cell, and with rewards
    that have no derivative. `O(n m)` memory and operations per step and example. Use small networks, large
    batches, a trace no longer than the delay of the reward, and sigma = 0.1 to 0.5 for units in -1..1.

    The baseline of a step is the running mean of its loss over earlier batches, which is independent of the
    noise, so it adds no bias. Only `value_and_grad` updates it, single steps do not.

    Args:
      net: a recurrent network defined by its step, whose examples do not depend on each other.
      loss: loss of one step, `(output, y) -> [batch]`, the negative reward; summed over steps.
      sigma: standard deviation of the noise, in the units of the pre-activations; may be traced.
      decay: factor by which the trace decays per step, in 0..1; may be traced.
      rate: rate of the running mean, in 0..1; may be traced.
      modulator: `(loss [batch], baseline []) -> [batch]`, the third factor; by default `loss - baseline`.
      noise: "normal", "rademacher" or a function `(key, like) -> unit noise`.

    Example:
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 16, 2), alpha=0.2)
      >>> rule, key = three_factor(net, ll.squared_error, sigma=0.1, decay=0.9), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, y)
      >>> state.baseline.shape
      (20,)

    References:
      Williams, Simple statistical gradient-following algorithms, https://doi.org/10.1007/BF00992696, 1992.
      Miconi, Biologically plausible learning in recurrent neural networks,
      https://doi.org/10.7554/eLife.20899, 2017.
    """
    check_net(net, loss)
    checks.check_positive("sigma", sigma)
    checks.check_probability("decay", decay)
    checks.check_probability("rate", rate)
    checks.check_callable("modulator", modulator, "a function (loss, baseline) -> [batch]", num_arguments=2)
    draw_noise = as_noise(noise)

    def init(key: Key, params: Params, x: Any) -> ThreeFactorState:
        stateless(net)(key, params, x)
        lengths = jax.eval_shape(lambda x: steps_first("x", x), x)
        return ThreeFactorState(jnp.zeros(jax.tree.leaves(lengths)[0].shape[0]))

    def start(params: Params, x: Any) -> ThreeFactorMemory:
        x, size = as_batch(x)
        params, x = widened((params, x))
        eligibility = jax.tree.map(lambda w: jnp.zeros((size, *w.shape), w.dtype), params)
        memory = ThreeFactorMemory(net.carry(params, x), eligibility, jnp.zeros((), int))
        return vary_as(memory, params, x)

    def step(
        key: Key, params: Params, state: ThreeFactorState, memory: ThreeFactorMemory, x: Any, y: Any
    ) -> tuple[Any, Params, ThreeFactorMemory]:
        checks.check_key("key", key)
        check_state(state, ThreeFactorState)
        x, size = as_batch(x)
        memory, (wide, x) = vary_as((memory, widened((params, x))), params, state, memory, x, y, key)
        check_examples(net, wide, memory.h, x)
        check_wide(as_model(net.step), wide, (memory.h, x))
        program = Program(as_model(net.step), wide, first((memory.h, x)))
        taps = program.plan.all_taps
        checks.check_resolved("sigma", sigma, *(tap.dtype for tap in taps))
        shapes = {tap.index: jax.ShapeDtypeStruct((size, *tap.shape), tap.dtype) for tap in taps}

        def example(h: Any, eligibility: PyTree, x: Any, unit: dict[int, Array]) -> Any:
            def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, Array]:
                return jax.lax.stop_gradient(z) + jnp.asarray(sigma, z.dtype) * feed, z

            def sums(parameters: list[Any]) -> tuple[dict[int, Array], Any]:
                inputs = jax.tree.map(lambda leaf: leaf[None], (h, x))
                after, _, zs = program.run(parameters, inputs, Hooks(end=end), feeds=unit)
                return zs, jax.tree.map(lambda leaf: leaf[0], after)

            _, pull_back, (after, output) = jax.vjp(sums, jax.tree.leaves(wide), has_aux=True)
            (scores,) = pull_back({i: n / jnp.asarray(sigma, n.dtype) for i, n in unit.items()})
            leaves, structure = jax.tree.flatten(eligibility)
            pairs = zip(leaves, scores, strict=True)
            moved = [jnp.asarray(decay, trace.dtype) * trace + score for trace, score in pairs]
            return after, output, structure.unflatten(moved)

        unit = vary_as(draw_noise(key, shapes), x)
        after, output, eligibility = jax.vmap(example)(memory.h, memory.eligibility, x, unit)
        losses = losses_of(loss, output, y, size)
        # Steps beyond those of the baseline give NaN, rather than use the baseline of another step.
        baseline = state.baseline.at[memory.t].get(mode="fill", fill_value=jnp.nan)
        factor = checks.as_floating("modulator", modulator(losses, baseline.astype(losses.dtype)))
        checks.check_shapes(["modulator"], [factor], [(size,)])
        grads = jax.tree.map(
            lambda trace: jnp.tensordot(factor.astype(trace.dtype) / size, trace, 1), eligibility
        )
        memory = ThreeFactorMemory(after, eligibility, memory.t + 1)
        return jnp.mean(losses), as_gradient(grads, params), memory

    def after(state: ThreeFactorState, losses: Array) -> ThreeFactorState:
        checks.check_shapes(["state.baseline"], [state.baseline], [losses.shape])
        change = losses.astype(state.baseline.dtype) - state.baseline
        return ThreeFactorState(state.baseline + jnp.asarray(rate, change.dtype) * change)

    steps = Online(start, step)
    return Rule(init, through_steps(steps, after), online=steps)
