"""Random feedback local online learning: eligibility traces that decay with the leak of each unit."""

from lax_learning.online._own_unit import own_unit_rule
from lax_learning.online._recurrent import Recurrent
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.types import Loss, Rule


def rflo(net: Recurrent, loss: Loss, *, feedback_init: FeedbackInit | None = same_scale) -> Rule:
    """Multiplies leaky eligibility traces by the output error, sent through fixed random weights.

    For leaky units, with `e_t = dl_t/doutput_t` and readout `h_t w_out`:

        p_t = (1 - alpha) p_{t-1} + alpha phi'(u_t) [x_t, h_{t-1}],  dw = sum_t p_t (e_t feedback^T)

    For any other cell, the leak is the derivative of a unit's state with respect to its previous state, with
    all products of weights held fixed: gates count, recurrent weights do not. States may have several leaves,
    such as a voltage and a threshold. `rule.online` keeps traces: `O(n m)` memory and operations per step and
    example, for `n` units with `m` inputs each. `value_and_grad` filters the errors backwards in time
    instead, which gives the same sum at the cost of backprop.

    Biased: a unit gets no credit for its effect on other units. The gradients of the readout are exact; with
    `feedback_init=None`, those of the cell are exact too if there are no recurrent weights.

    Args:
      net: a recurrent network defined by its step. The weights of its cell must multiply x or h, or functions
        of these that act unit by unit. Units are the last axis of the weights and of all leaves of the state.
        Cells that mix units in any other way are refused.
      loss: loss of one step, `(output, y) -> [batch]`; summed over steps.
      feedback_init: `(key, weight) -> feedback` for the readout, by default normal with the standard
        deviation of the weights; has the structure of `params["readout"]`. None uses the readout's weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 64, 2), alpha=0.2)
      >>> rule, key = rflo(net, ll.squared_error), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, y)
      >>> memory = rule.online.start(params, x[:, 0])
      >>> loss, grads, memory = jax.jit(rule.online.step)(key, params, state, memory, x[:, 0], y[:, 0])

    References:
      Murray, Local online learning in recurrent networks with random feedback,
      https://doi.org/10.7554/eLife.43299, 2019.
    """
    return own_unit_rule(net, loss, feedback_init, onto_itself=False)
