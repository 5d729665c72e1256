"""Rules on decorrelated inputs, which update R in the same step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_function, check_instance, check_key, check_memory
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import shard_as
from lax_learning._sites._program import Program
from lax_learning.decorrelation._models import Layers, inputs, places_of, wrap
from lax_learning.models import Model, check_model, check_where
from lax_learning.types import Dynamics, Key, Params, Rule, Where


class RuleState(NamedTuple):
    """State of a rule on decorrelated inputs.

    Fields:
      layers: `State` by the path of the first parameter that reads the data value, with leading axes for
        stacked layers and groups.
      losses: `loss` of the inputs before the last update, by the same names; NaN if R was not updated.
      rule: state of the wrapped rule.
    """

    layers: Layers
    losses: dict[str, Array]
    rule: Any


def rule(
    make_rule: Callable[[Model], Rule], model: Model, dynamics: Dynamics, *, where: Where = None
) -> Rule:
    """Applies any rule to a model with decorrelated inputs, and updates R in the same step.

    `op(w, R x)` instead of every product `op(w, x)`; R is learned from x of a forward pass without noise.

    Each data value has one R: query, key and value products of the same x share it, as do the steps of a scan
    over time. Stacked layers, and the groups of a grouped convolution, have one R each. R is not a parameter:
    gradients have the structure of params, and errors propagate through `R^T`. Products of integer inputs are
    refused. To predict, use `rule.model_at(model, state)`, or the plain model with the weights of `fold`.

    Args:
      make_rule: `model -> rule`, for example `lambda model: feedback_alignment(model, loss)`.
      model: any model.
      dynamics: from `dynamics`, or your own with the same signatures, whose state has a field R.
      where: selects the parameters whose inputs are decorrelated; by default, those of all products and
        convolutions.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> learn = ll.decorrelation.dynamics(0.1)
      >>> white = rule(lambda m: ll.backprop(m, ll.squared_error), model, learn)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = white.init(key, params, x)
      >>> {name: layer.R.shape for name, layer in state.layers.items()}
      {'a': (3, 3), 'b': (3, 3)}
      >>> loss, grads, state = jax.jit(white.value_and_grad)(key, params, state, x, x)
    """
    check_model(model)
    check_function("make_rule", make_rule, "a function from a model to a rule", model)
    check_instance("dynamics", dynamics, Dynamics, "Dynamics, from decorrelation.dynamics")
    check_where("where", where)

    def rule_on(layers: Layers) -> Rule:
        made = make_rule(wrap(model, layers, where=where))
        check_instance("make_rule", made, Rule, "a function from a model to a rule on it")
        return made

    def init(key: Key, params: Params, x: Any) -> RuleState:
        check_key("key", key)
        program = Program(model, params, as_batch(x, only_shapes=True)[0])
        layers: Layers = {}
        for name, place in places_of(program, where).items():
            check_memory(f"where: {name!r}", [(*place.shape, place.shape[-1])])
            layers[name] = jax.tree.map(
                lambda leaf, lead=place.shape[:-1]: jnp.broadcast_to(leaf, (*lead, *jnp.shape(leaf))),
                dynamics.init(place.shape[-1]),
            )
        losses = {name: jnp.full(layer.R.shape[:-2], jnp.nan, jnp.float32) for name, layer in layers.items()}
        return RuleState(layers, losses, rule_on(layers).init(key, params, x))

    def value_and_grad(
        key: Key, params: Params, state: RuleState, x: Any, y: Any
    ) -> tuple[Any, Params, RuleState]:
        check_instance("state", state, RuleState, "the state of the rule's init(key, params, x)")
        check_key("key", key)
        rule_key, update_key = jax.random.split(key)
        value, grads, rule_state = rule_on(state.layers).value_and_grad(rule_key, params, state.rule, x, y)
        read = inputs(model, params, state.layers, x, where=where)
        learned = {}
        for k, (name, vectors) in zip(jax.random.split(update_key, len(read)), read.items(), strict=True):
            update, lead = dynamics.update, vectors.shape[:-2]
            for _ in lead:
                update = jax.vmap(update)
            layer = jax.tree.map(
                lambda leaf, lead=lead: leaf if jnp.ndim(leaf) >= len(lead) else jnp.broadcast_to(leaf, lead),
                state.layers[name],
            )
            learned[name] = update(jax.random.split(k, lead), layer, shard_as(vectors))
        layers = {name: layer for name, (layer, _) in learned.items()}
        losses = {name: found.loss.astype(jnp.float32) for name, (_, found) in learned.items()}
        return value, grads, RuleState(layers, losses, rule_state)

    def wrapped(state: RuleState) -> Model:
        return wrap(model, state.layers, where=where)

    return Rule(init, value_and_grad, model.trainable, wrapped=wrapped)
