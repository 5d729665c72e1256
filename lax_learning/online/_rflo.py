"""Random feedback local online learning: the trace of a weight decays with the leak of its unit."""

from lax_learning.online._own_unit import own_unit_rule
from lax_learning.online._recurrent import Recurrent
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.types import Loss, Rule


def rflo(net: Recurrent, loss: Loss, *, feedback_init: FeedbackInit | None = same_scale) -> Rule:
    """Credits a weight with the output error, and with a leaky trace of the input to its unit.

    For leaky units, with `e_t = dl_t/doutput_t` and readout `h_t w_out`:

        p_t = (1 - alpha) p_{t-1} + alpha phi'(u_t) [x_t, h_{t-1}],  dw = sum_t p_t (e_t feedback^T)

    For any other cell the leak is the derivative of a unit's state by its own last state, with all products
    of weights held fixed: gates pass, recurrent weights do not. States may have several leaves, such as a
    voltage and a threshold. `value_and_grad` filters the errors backwards in time instead,

        delta_s = alpha phi'(u_s) sum_{t >= s} (1 - alpha)^{t - s} (e_t feedback^T)
        dw = sum_s [x_s, h_{s-1}]^T delta_s

    which is the same sum at the cost of backprop, without a trace; `rule.online` keeps the traces: `O(n m)`
    memory and operations a step and example, for `n` units of `m` inputs.

    Biased: credit reaches a weight through its own unit alone, so that effects of a unit by way of others are
    not learned. The gradients of the readout are exact; with `feedback_init=None` those of the cell are exact
    without recurrent weights, and their error grows with these. Fails where a memory has to live in loops
    between units for longer than their time constants.

    Args:
      net: a recurrent network as its step. Weights of its cell read x or h, or functions of them unit by
        unit; their last axis is that of the units, as is that of all leaves of the state. Cells that mix
        units otherwise are refused.
      loss: loss of one step, `(output, y) -> [batch]`; summed over steps.
      feedback_init: `(key, weight) -> feedback` of the readout, by default normal with its standard
        deviation, in the structure of `params["readout"]`; None for errors through the readout's own weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 64, 2), alpha=0.2)
      >>> rule, key = rflo(net, ll.squared_error), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, y)
      >>> memory = rule.online.start(params, x[:, 0])
      >>> loss, grads, memory = rule.online.step(key, params, state, memory, x[:, 0], y[:, 0])

    References:
      Murray, Local online learning in recurrent networks with random feedback,
      https://doi.org/10.7554/eLife.43299, 2019.
    """
    return own_unit_rule(net, loss, feedback_init, onto_itself=False)
