"""Meta-learning of plasticity tables through an unrolled pass (Cristian et al., 2020)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning import estimators
from lax_learning._arrays import check_one_hot
from lax_learning._structure import mapping_like, sequence_like
from lax_learning.losses import softmax_cross_entropy
from lax_learning.plasticity.networks import KCapNetwork, State, check_network
from lax_learning.plasticity.passes import applied, plastic_pass, read_changes
from lax_learning.plasticity.tables import UPDATES, Tables
from lax_learning.rules._common import check_loss, losses_of
from lax_learning.training import Train, make_train
from lax_learning.types import Estimator, Key, Loss, Rule


class MetaParams(NamedTuple):
    """Parameters that are learned upstream.

    Fields:
      tables: of all plastic layers.
      w: weights of the first layer, `[inputs, width]`.
    """

    tables: Tables
    w: Float[Array, "inputs width"]


def with_params(state: State, params: MetaParams) -> State:
    """The state with the first-layer weights of `params`."""
    checks.check_instance("params", params, MetaParams, "MetaParams(tables, w)")
    checks.check_sequence("state", state, "a tuple with a dict a layer")
    if not state or not isinstance(state[0], Mapping):
        got = checks.describe(state and state[0])
        raise ValueError(f"state: expected a dict for the first layer, got {got}")
    w = checks.as_floating("params.w", params.w)
    if "w" in state[0]:
        checks.check_shapes(["params.w"], [w], [jnp.shape(state[0]["w"])])
    return sequence_like(state, (mapping_like(state[0], w=w), *state[1:]))


def learn_episode(network: KCapNetwork, tables: Tables, state: State, xs: ArrayLike, ys: ArrayLike) -> State:
    """Returns the state after one pass from reset weights, with a cheap derivative by the tables.

    The entries that synapses read are constants, so the final weights are a sum of entries over samples, in
    the multiplicative scheme of their logarithms: `S = sum_t onehot(pre_t)' rows_t`, one matrix product. The
    value comes from the scan and the derivative from that product: only codes are stored for the backward
    pass, and forward mode, reverse mode and perturbation all work. The derivative by a multiplicative factor
    that is exactly 0 counts as 0.
    """
    check_network(network)
    state = network.reset(state)
    fixed_tables, fixed_state = jax.lax.stop_gradient((tables, state))
    after, _, diagnostics = plastic_pass(network, fixed_tables, fixed_state, xs, ys)

    def changes_of(response: Any, label: Array) -> Any:
        return read_changes(network, tables, fixed_state, response, label)[0]

    changes = jax.vmap(changes_of)(diagnostics.response, jnp.asarray(ys, jnp.int32))
    update = UPDATES[network.scheme.update]
    learned = []
    for layer, change in zip(after[1:], changes, strict=True):
        codes = jnp.arange(change.rows.shape[1], dtype=jnp.int32)[:, None]
        read = (change.pre[:, None, :] == codes).astype(change.rows.dtype)
        total = jnp.einsum("tci,tcj->ij", read, update.summand(change.rows))
        total = jnp.where(layer["mask"], total, 0)
        w = applied(network, layer["w"], total - jax.lax.stop_gradient(total))
        learned.append(mapping_like(layer, w=w))
    return sequence_like(state, (state[0], *learned))


def meta_init(network: KCapNetwork, state: State, **options: Any) -> Callable[[Key], MetaParams]:
    """Returns the initialiser `key -> MetaParams` for `meta_rule`, with options of `network.init_tables`."""
    check_network(network)
    network.check_state(state)

    def init(key: Key) -> MetaParams:
        return MetaParams(network.init_tables(key, **options), state[0]["w"])

    jax.eval_shape(init, jax.random.key(0))  # options are refused here rather than in a run
    return init


def meta_rule(
    network: KCapNetwork,
    state: State,
    *,
    estimator: Callable[..., Estimator] = estimators.backprop,
    loss: Loss = softmax_cross_entropy,
) -> Rule:
    """Returns the rule that learns tables and first-layer weights.

    `L(tables, w) = mean loss on a batch after one pass over that batch from reset weights`

    Args:
      network: from `k_cap_mlp` or `k_cap_recurrent`.
      state: from `network.init`: its synapses, and the first-layer weights to start from.
      estimator: a factory over the loss; `estimators.backprop` for the exact gradient through the pass,
        or any other of `estimators`, for example
        `functools.partial(estimators.weight_perturbation, sigma=0.01)`.
      loss: per-example loss `(logits, y) -> [batch]`.

    Returns:
      A rule of `MetaParams`, from `meta_init`, for `x [batch, inputs]` and one-hot `y [batch, labels]`. Under
      `jit` other targets are not noticed, and their largest entry counts as the label.
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
        if x.ndim != 2:
            raise ValueError(f"x: expected shape [batch, {network.shapes[0][0]}], got {list(x.shape)}")
        checks.check_shapes(["y"], [y], [(x.shape[0], network.shapes[-1][1])])
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
    """Makes a run of meta-learning: an outer optimiser on the loss after a pass over every batch.

    Args:
      network, state: as of `meta_rule`.
      optimizer: from optax, for tables and first-layer weights. The published code's is torch's Adam with L2
        decay in the gradient: `optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01))`.
      num_updates: number of batches.
      batch_size: samples a pass.
      **options: `evaluate` and `every` as in `make_train`, all others as in `meta_rule` and `meta_init`.

    Returns:
      `train(key, data) -> History`, as from `make_train`; the learned `MetaParams` are its `state.params`.

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
    return make_train(
        meta_rule(network, state, **of_rule), optimizer, init=meta_init(network, state, **options),
        num_updates=num_updates, batch_size=batch_size, **run,
    )  # fmt: skip
