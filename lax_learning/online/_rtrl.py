"""Real-time recurrent learning: the exact gradient, computed forward in time."""

from lax_learning.online._influence import online, through_steps
from lax_learning.online._recurrent import Recurrent, check_net
from lax_learning.rules._common import stateless
from lax_learning.types import Loss, Rule


def rtrl(net: Recurrent, loss: Loss) -> Rule:
    """Computes the exact gradient at every step by propagating derivatives of the state forward in time.

    `P_t = (dh_t/dh_{t-1}) P_{t-1} + dh_t/dw`, `dw = sum_t (dl_t/dh_t) P_t`

    Works with any cell. If the weights stay the same at all steps, its gradients sum to those of backprop
    through time; if they change within a sequence, `P` mixes derivatives at old and new weights, an error of
    the order of the learning rate. For `n` units and `m` inputs, `O(n^2 (n + m))` memory and
    `O(n^3 (n + m))` operations per step and example: for small networks.

    Args:
      net: a recurrent network defined by its step, whose examples do not depend on each other.
      loss: loss of one step, `(output, y) -> [batch]`; summed over steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> net = ll.online.leaky_rnn((3, 4, 2), alpha=0.2)
      >>> rule, key = rtrl(net, ll.squared_error), jax.random.key(0)
      >>> params, x, y = net.init(key), jnp.ones((5, 20, 3)), jnp.ones((5, 20, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, (), x, y)

      Or step by step, with an update after every step:

      >>> memory, step = rule.online.start(params, x[:, 0]), jax.jit(rule.online.step)
      >>> for t in range(2):
      ...     loss, grads, memory = step(key, params, (), memory, x[:, t], y[:, t])
      ...     params = jax.tree.map(lambda w, g: w - 0.01 * g, params, grads)

    References:
      Williams, Zipser, A learning algorithm for continually running fully recurrent neural networks,
      https://doi.org/10.1162/neco.1989.1.2.270, 1989.
    """
    check_net(net, loss)
    steps = online(net, loss, lambda params, state, h, x: net.step)
    return Rule(stateless(net), through_steps(steps), online=steps)
