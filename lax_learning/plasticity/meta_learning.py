"""Meta-learning of plasticity tables through an unrolled pass (Cristian et al., 2020)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning import estimators
from lax_learning._arrays import check_one_hot
from lax_learning.losses import softmax_cross_entropy
from lax_learning.plasticity.networks import KCapNetwork, State, check_network, with_weights
from lax_learning.plasticity.passes import applied, plastic_pass, read_changes
from lax_learning.plasticity.tables import Scheme, Tables
from lax_learning.rules._common import check_loss, losses_of
from lax_learning.training import Train, make_train
from lax_learning.types import Estimator, Key, Loss, Rule


class MetaParams(NamedTuple):
    """Parameters learned by meta-learning.

    Fields:
      tables: the tables of all plastic layers.
      w: the weights of the first layer, `[inputs, width]`.
    """

    tables: Tables
    w: Float[Array, "inputs width"]


def with_params(state: State, params: MetaParams) -> State:
    """Returns the state with the first-layer weights of `params`."""
    checks.check_instance("params", params, MetaParams, "MetaParams(tables, w)")
    first = state[0] if isinstance(state, Sequence) and state else state
    if not isinstance(first, Mapping) or "w" not in first:
        raise ValueError(f"state: expected a tuple with one dict per layer, got {checks.describe(first)}")
    w = checks.as_floating("params.w", params.w)
    checks.check_shapes(["params.w"], [w], [jnp.shape(first["w"])])
    return with_weights(state, [w], first=0)


def learn_episode(network: KCapNetwork, tables: Tables, state: State, xs: ArrayLike, ys: ArrayLike) -> State:
    """Returns the state after one pass from reset weights, with a cheap derivative w.r.t. the tables.

    The choice of entries is treated as constant, so the final weights are sums of entries over samples (of
    logarithms in the multiplicative scheme): `S = sum_t onehot(pre_t)' rows_t`. Derivatives of all modes are
    computed from this one matrix product; w.r.t. a multiplicative factor of exactly 0, they are taken as 0.
    """
    check_network(network)
    state = network.reset(state)
    fixed_tables, fixed_state = jax.lax.stop_gradient((tables, state))
    after, _, diagnostics = plastic_pass(network, fixed_tables, fixed_state, xs, ys)

    def changes_of(response: Any, label: Array) -> Any:
        return read_changes(network, tables, fixed_state, response, label)[0]

    changes = jax.vmap(changes_of)(diagnostics.response, jnp.asarray(ys, jnp.int32))
    learned = []
    for layer, change in zip(after[1:], changes, strict=True):
        codes = jnp.arange(change.rows.shape[1], dtype=jnp.int32)[:, None]
        read = (change.pre[:, None, :] == codes).astype(change.rows.dtype)
        total = jnp.einsum("tci,tcj->ij", read, _summand(network.scheme, change.rows))
        total = jnp.where(layer["mask"], total, 0)
        # Adding d to the total changes the final weight w as one more change by d would.
        learned.append(applied(network, layer["w"], total - jax.lax.stop_gradient(total)))
    return with_weights(state, learned)


def _summand(scheme: Scheme, change: Array) -> Array:
    """Returns the change, or the `log |factor|` of a multiplicative one."""
    if scheme.update == "additive":
        return change
    factor = 1 + change
    return jnp.log(jnp.abs(jnp.where(factor == 0, 1, factor)))


def meta_init(network: KCapNetwork, state: State, **options: Any) -> Callable[[Key], MetaParams]:
    """Returns an initialiser `key -> MetaParams` for `meta_rule`; takes the options of `init_tables`."""
    check_network(network)
    network.check_state(state)

    def init(key: Key) -> MetaParams:
        return MetaParams(network.init_tables(key, **options), state[0]["w"])

    jax.eval_shape(init, jax.random.key(0))  # raises for invalid options before a run
    return init


def meta_rule(
    network: KCapNetwork,
    state: State,
    *,
    estimator: Callable[..., Estimator] = estimators.backprop,
    loss: Loss = softmax_cross_entropy,
) -> Rule:
    """Returns a rule that learns tables and first-layer weights.

    `L(tables, w) = mean loss on a batch after one pass over that batch from reset weights`

    Args:
      network: from `k_cap_mlp` or `k_cap_recurrent`.
      state: from `network.init`: the synapses, and the initial first-layer weights.
      estimator: function `loss_fn -> Estimator`: `estimators.backprop` for the exact gradient through the
        pass, or any other of `estimators`, for example
        `functools.partial(estimators.weight_perturbation, sigma=0.01)`.
      loss: per-example loss `(logits, y) -> [batch]`.

    Returns:
      A rule for `MetaParams` (from `meta_init`), `x [batch, inputs]` and one-hot `y [batch, labels]`. Under
      `jit`, one-hot targets cannot be checked: the largest entry is taken as the label.
    """
    check_network(network)
    network.check_state(state)
    checks.check_function("estimator", estimator, "a factory of estimators such as estimators.backprop", None)
    check_loss(loss)

    def loss_fn(params: MetaParams, x: Array, y: Array) -> Array:
        labels = jnp.argmax(y, axis=-1).astype(jnp.int32)
        learned = learn_episode(network, params.tables, with_params(state, params), x, labels)
        return losses_of(loss, network.apply(learned, x), y, len(x))

    estimate = estimator(loss_fn)
    checks.check_callable("estimator", estimate, "a factory of estimators such as estimators.backprop")

    def value_and_grad(
        key: Key, params: MetaParams, rule_state: Any, x: ArrayLike, y: ArrayLike
    ) -> tuple[Array, MetaParams, Any]:
        checks.check_key("key", key)
        checks.check_instance("params", params, MetaParams, "MetaParams(tables, w)")
        x, y = checks.as_array("x", x), checks.as_array("y", y)
        sizes = network.shapes[0][0], network.shapes[-1][1]
        checks.check_shapes(["x", "y"], [x, y], [(*x.shape[:1], size) for size in sizes])
        check_one_hot("y", y)
        return *estimate(key, params, x, y), rule_state

    return Rule(lambda key, params, x: (), value_and_grad)


def meta_learn(
    network: KCapNetwork,
    state: State,
    optimizer: optax.GradientTransformation,
    *,
    num_updates: int,
    batch_size: int = 100,
    **options: Any,
) -> Train:
    """Makes a meta-learning run: an outer optimiser minimises the loss after a pass over each batch.

    Args:
      network, state: as for `meta_rule`.
      optimizer: from optax, for tables and first-layer weights. The published code uses torch's Adam with L2
        decay in the gradient: `optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01))`.
      num_updates: number of batches.
      batch_size: samples per pass.
      **options: `evaluate` and `every` as for `make_train`; all others as for `meta_rule` and `meta_init`.

    Returns:
      `train(key, data) -> History`, as from `make_train`; its `state.params` are the learned `MetaParams`.

    Example:
      >>> import lax_learning as ll
      >>> network = ll.plasticity.k_cap_mlp((8, 20, 20, 2), cap=10)
      >>> data = ll.data.half_space(jax.random.key(0), 8, sizes=(50, 0, 20))
      >>> train = meta_learn(
      ...     network, network.init(jax.random.key(1)), optax.adam(0.01), num_updates=3, batch_size=10
      ... )
      >>> jax.jit(train)(jax.random.key(2), data).losses.shape
      (3,)
    """
    run = {name: options.pop(name) for name in ("evaluate", "every") if name in options}
    of_rule = {name: options.pop(name) for name in ("estimator", "loss") if name in options}
    rule, init = meta_rule(network, state, **of_rule), meta_init(network, state, **options)
    return make_train(rule, optimizer, init=init, num_updates=num_updates, batch_size=batch_size, **run)
