"""Local errors for any model: every layer learns from the loss at its own linear readout."""

from typing import Any

import jax
from jaxtyping import Array

from lax_learning.models import Model
from lax_learning.rules._common import error_of
from lax_learning.rules._direct import ByName, DirectInit, Pass, direct_rule
from lax_learning.types import Key, Loss, Rule, Where


def keeps_sums(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Draws normal readouts with variance `1 / units`, so that their outputs have the variance of units."""
    return (jax.random.normal(key, like.shape) * like.shape[-2] ** -0.5).astype(like.dtype)


def local_errors(
    model: Model, loss: Loss, *, optimizer: Any, feedback_init: DirectInit = keeps_sums, where: Where = None
) -> Rule:
    """Trains every layer on the loss at a linear readout of its own activity; errors pass through no product.

    `e_l = dL(a_l B_l, y)/d(a_l B_l)`, `delta_l = (e_l B_l^T) phi'(z_l)`, `g_B = a_l^T e_l`

    Every data value that sites read has a readout `B_l [units, outputs]` in the rule's state; the model's own
    readout gets the true error. Gradients are exact for the sum of the loss and of all local losses if the
    inputs of products count as fixed. Learning is greedy: no layer learns features that only later layers
    could use. As in `direct_feedback_alignment`, errors that reach a data value around products, for example
    through a residual connection, are added. A readout has a row for every unit of its data value: positions
    times channels of a convolution, unless the output has the same positions. Steps of a scan share a readout
    and are summed; stacked layers have one each. For blocks of several layers, heads of another form or
    another rule within a block, see `local_losses`.

    Args:
      optimizer: updates the readouts at every call of `value_and_grad`; `optax.set_to_zero()` keeps them
        fixed and random, as Mostafa et al. do.
      feedback_init: `(key, like) -> readout`; by default normal with variance `1 / units`.
      where: as in `direct_feedback_alignment`.

    Returns:
      The rule, with a `LearnedState` whose `feedback` holds the readouts. They change only if you use the
      returned state.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = local_errors(model, ll.squared_error, optimizer=optax.sgd(0.1))
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, jnp.ones((5, 2)))
      >>> grads["a"].shape
      (3, 4)

    References:
      Mostafa, Ramesh, Cauwenberghs, Deep supervised learning using local errors,
      https://doi.org/10.3389/fnins.2018.00608, 2018 (fixed readouts).
      Nøkland, Eidnes, Training neural networks with local error signals, https://arxiv.org/abs/1901.06656,
      2019 (learned readouts; their prediction loss).
    """

    def sent(passed: Pass, feedback: ByName, y: Any) -> ByName:
        outputs, structure = jax.tree.flatten(passed.output)
        size = len(outputs[0])

        def errors_at(predicted: dict[int, Array]) -> dict[int, Array]:
            leaves = [predicted.get(j, output) for j, output in enumerate(outputs)]
            error = error_of(loss, structure.unflatten(leaves), y, size, 1 / size)[1]
            return {j: jax.tree.leaves(error)[j] for j in predicted}

        found: ByName = {}
        for index in dict.fromkeys(route.read.index for route in passed.routes.values()):
            names = {r.output: name for name, r in passed.routes.items() if r.read.index == index}
            predicted, errors, layers = {}, errors_at, ()
            for j, name in names.items():
                route = passed.routes[name]
                layers = route.layers
                of_read = jax.vmap(route.readout, (None, 0))(feedback[name], passed.reads[index])
                shape = (size, *layers, *outputs[j].shape[1:])
                predicted[j] = of_read.reshape(shape).astype(outputs[j].dtype)
            for _ in layers:  # stacked layers have one loss each
                errors = jax.vmap(errors, in_axes=1, out_axes=1)
            found |= {names[j]: error for j, error in errors(predicted).items()}
        return found

    def learn(key: Key, feedback: ByName, passed: Pass, sent: ByName) -> ByName:
        return passed.paired(feedback, sent, passed.reads)

    return direct_rule(model, loss, feedback_init, where, sent=sent, learn=learn, optimizer=optimizer)
