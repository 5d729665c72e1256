"""Direct random target projection for any model: the target takes the place of the error."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._arrays import check_same_structure
from lax_learning._checks import check_callable
from lax_learning.models import Model
from lax_learning.rules._direct import ByName, DirectInit, Pass, direct_rule, keeps_variance
from lax_learning.types import Loss, Rule, Where


def unchanged(y: Any) -> Any:
    """Returns y."""
    return y


def direct_random_target_projection(
    model: Model,
    loss: Loss,
    *,
    targets: Callable[[Any], Any] = unchanged,
    feedback_init: DirectInit = keeps_variance,
    where: Where = None,
) -> Rule:
    """Sends the target through fixed random weights to every data value that sites read.

    `delta_l = (y B_l^T) phi'(z_l)` with one-hot targets y; the readout gets its true error.

    A layer can learn as soon as its own activity and the label are available, before the layers above have
    run. For one-hot targets and outputs in 0..1, the target encodes the sign of the error, but not its size:
    hidden layers never stop changing, so learning rates should be smaller than for direct feedback alignment.
    Targets must have the shape of the output; integer labels and regression to arbitrary values do not work.
    Positions, several outputs and stacked layers are treated as in `direct_feedback_alignment`.

    Args:
      targets: `y -> targets` with the structure and shapes of the output, if y contains more than targets.
      feedback_init, where: as in `direct_feedback_alignment`; the public code draws feedback uniformly with a
        bound of `sqrt(6 / units)`.

    Returns:
      The rule, with the state of `direct_feedback_alignment`.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = direct_random_target_projection(model, ll.softmax_cross_entropy)
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> y = jax.nn.one_hot(jnp.arange(5) % 2, 2)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, rule.init(key, params, x), x, y)
      >>> grads["a"].shape
      (3, 4)

    References:
      Frenkel, Lefebvre, Bol, Learning without feedback: fixed random learning signals allow for feedforward
      training of deep neural networks, https://arxiv.org/abs/1909.01311, 2021; the sign is that of the
      authors' code.
    """
    check_callable("targets", targets, "a function y -> targets", num_arguments=1)

    def sent(passed: Pass, feedback: ByName, y: Any) -> ByName:
        found = targets(y)
        check_same_structure(("targets", "the output"), (found, passed.error))
        found = jax.tree.map(lambda target, e: jnp.asarray(target, e.dtype) / len(e), found, passed.error)
        return passed.everywhere(found)

    return direct_rule(model, loss, feedback_init, where, sent=sent)
