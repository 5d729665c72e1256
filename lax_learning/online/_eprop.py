"""E-prop: eligibility traces that follow the dynamics of each unit's own state."""

from lax_learning.online._own_unit import own_unit_rule
from lax_learning.online._recurrent import Recurrent
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.types import Loss, Rule


def eprop(net: Recurrent, loss: Loss, *, feedback_init: FeedbackInit | None = same_scale) -> Rule:
    """Multiplies eligibility traces, which follow each unit's own dynamics, by the output error.

    `p_t = D_t p_{t-1} + dh_t/dw`, `D_t = diag(dh_t/dh_{t-1})`, `dw = sum_t p_t (e_t feedback^T)`

    For leaky units `D_t = 1 - alpha + alpha phi'(u_t) w_jj`: RFLO plus the self-connection of each unit. If
    the state has several leaves, `D_t` is a small matrix per unit. Bellec et al. treat self-connections as
    connections between units: for cells that have them, their e-prop is `rflo`, and `eprop` is the one-step
    sparse approximation (SnAp-1) of Menick et al.

    With `feedback_init=None`, exact for units that are connected only to themselves; otherwise biased.
    Arguments, state, cost, offline and online forms, and the supported cells are those of `rflo`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 64, 2), alpha=0.2)
      >>> rule, key = eprop(net, ll.squared_error, feedback_init=None), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, rule.init(key, params, x), x, y)

    References:
      Bellec et al., A solution to the learning dilemma for recurrent networks of spiking neurons,
      https://doi.org/10.1038/s41467-020-17236-y, 2020.
      Menick et al., Practical real time recurrent learning with a sparse approximation,
      https://arxiv.org/abs/2006.07232, 2020.
    """
    return own_unit_rule(net, loss, feedback_init, onto_itself=True)
