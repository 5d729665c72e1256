"""E-prop: the trace of a weight follows the state of its unit."""

from lax_learning.online._own_unit import own_unit_rule
from lax_learning.online._recurrent import Recurrent
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.types import Loss, Rule


def eprop(net: Recurrent, loss: Loss, *, feedback_init: FeedbackInit | None = same_scale) -> Rule:
    """Credits a weight with the output error, and with the trace of its input in the state of its unit.

    `p_t = D_t p_{t-1} + dh_t/dw`, `D_t = diag(dh_t/dh_{t-1})`, `dw = sum_t p_t (e_t feedback^T)`

    For leaky units `D_t = 1 - alpha + alpha phi'(u_t) w_jj`: RFLO, and the weight of a unit onto itself.
    Where a state has several leaves, `D_t` is a matrix for each unit. Bellec et al. treat the weight of a
    unit onto itself as one between units: on such cells their e-prop is `rflo`, and `eprop` is the sparse
    approximation of one step of Menick et al. (SnAp-1).

    Exact for units that are connected with themselves alone, with `feedback_init=None`; otherwise biased, by
    all credit that passes through other units. Arguments, state, cost, offline and online form, and cells are
    those of `rflo`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 64, 2), alpha=0.2)
      >>> rule, key = eprop(net, ll.squared_error, feedback_init=None), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> loss, grads, state = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)

    References:
      Bellec et al., A solution to the learning dilemma for recurrent networks of spiking neurons,
      https://doi.org/10.1038/s41467-020-17236-y, 2020.
      Menick et al., Practical real time recurrent learning with a sparse approximation,
      https://arxiv.org/abs/2006.07232, 2020.
    """
    return own_unit_rule(net, loss, feedback_init, onto_itself=True)
