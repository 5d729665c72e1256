"""Models of plasticity transfer, one line each: how they learn upstream and downstream."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import constant, normal

import lax_learning as ll
from experiments.plasticity_transfer.config import Config
from lax_learning import plasticity
from lax_learning.plasticity import KCapNetwork, Scheme, State, TableRule, Tables
from lax_learning.types import Estimator

HIDDEN_STARTS = {"constant": constant(0.4), "normal": normal(1.0)}

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "backprop": ll.estimators.backprop,
    "forward_gradient": partial(ll.estimators.forward_gradient, num_samples=8),
    "weight_perturbation": partial(
        ll.estimators.weight_perturbation, sigma=0.01, difference="central", num_samples=8
    ),
}


def double_softmax(output: jax.Array, y: jax.Array) -> jax.Array:
    """Published loss: softmax cross-entropy of softmax outputs; with two labels >= log(1 + 1/e) = 0.3133."""
    return ll.softmax_cross_entropy(jax.nn.softmax(output), y)


def loss_of(config: Config) -> ll.Loss:
    """Returns the loss of the upstream stage and of gradient descent."""
    return double_softmax if config.double_softmax else ll.softmax_cross_entropy


Learned = tuple[Tables, ...]  # result of the upstream stage: tables, or nothing


class Upstream(NamedTuple):
    """Network whose tables are meta-learned, and the initialiser of its hidden tables."""

    network: KCapNetwork
    hidden_start: jax.nn.initializers.Initializer


class Downstream(NamedTuple):
    """Learner that sees every image once."""

    init: Callable[[jax.Array, Learned], Any]  # (key, learned upstream) -> carry
    advance: Callable[[Any, jax.Array, jax.Array], Any]  # (carry, x, y [samples, labels]) -> carry
    apply: Callable[[Any, jax.Array], jax.Array]  # (carry, x [samples, inputs]) -> output [samples, labels]
    multiple: int  # the number of samples between evaluations is a multiple of this


class Model(NamedTuple):
    """A model of the comparison."""

    upstream: Callable[[Config], Upstream | None]
    downstream: Callable[[Config], Downstream]


def plastic(network: KCapNetwork) -> Downstream:
    """Returns a learner with transferred tables, without gradients."""

    def init(key: jax.Array, learned: Learned) -> tuple[Tables, State]:
        return plasticity.transfer(learned[0], network), network.init(key)

    def advance(carry: tuple[Tables, State], x: jax.Array, y: jax.Array) -> tuple[Tables, State]:
        tables, state = carry
        return tables, plasticity.plastic_pass(network, tables, state, x, jnp.argmax(y, axis=-1))[0]

    return Downstream(init, advance, lambda carry, x: network.apply(carry[1], x), 1)


def descent(network: KCapNetwork, config: Config) -> Downstream:
    """Returns a learner of all weights by Adam, from initial weights uniform in -0.5..0.5."""
    optimizer, batch_size = optax.adam(config.chosen.descent_rate), config.chosen.descent_batch

    def init(key: jax.Array, learned: Learned) -> Any:
        state_key, w_key = jax.random.split(key)
        state = network.init(state_key)
        weights, masks = ([layer[name] for layer in state] for name in ("w", "mask"))
        pairs = zip(jax.random.split(w_key, len(state)), weights, strict=True)
        weights = [jax.random.uniform(k, w.shape, w.dtype, -0.5, 0.5) for k, w in pairs]
        return weights, masks, optimizer.init(weights)

    def apply(carry: Any, x: jax.Array) -> jax.Array:
        weights, masks, _ = carry
        return network.apply(tuple({"w": w, "mask": m} for w, m in zip(weights, masks, strict=True)), x)

    def loss(weights: Any, masks: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(loss_of(config)(apply((weights, masks, ()), x), y))

    def update(carry: Any, batch: Any) -> tuple[Any, None]:
        weights, masks, optimizer_state = carry
        grads = jax.grad(loss)(weights, masks, *batch)
        updates, optimizer_state = optimizer.update(grads, optimizer_state)
        return (optax.apply_updates(weights, updates), masks, optimizer_state), None

    def advance(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        batches = jax.tree.map(lambda a: a.reshape(-1, batch_size, a.shape[-1]), (x, y))
        return jax.lax.scan(update, carry, batches)[0]

    return Downstream(init, advance, apply, batch_size)


def _feed_forward(config: Config, num_hidden: int, rule: TableRule, ends: tuple[int, int]) -> KCapNetwork:
    widths = (ends[0], *(config.width,) * num_hidden, ends[1])
    return plasticity.k_cap_mlp(widths, config.cap, edge_probability=config.edge_probability, rule=rule)


def _recurrent(config: Config, ends: tuple[int, int]) -> KCapNetwork:
    scheme = Scheme(samples=config.chosen.rnn_samples, rows=config.chosen.rnn_rows)
    options = {"edge_probability": config.edge_probability, "scheme": scheme}
    return plasticity.k_cap_recurrent((ends[0], config.width, ends[1]), config.cap, fired="index", **options)


def _by_tables(network: Callable[[Config, tuple[int, int]], KCapNetwork], start: str | None = None) -> Model:
    return Model(
        lambda c: Upstream(network(c, (c.features, 2)), HIDDEN_STARTS[start or c.hidden_start]),
        lambda c: plastic(network(c, (784, 10))),
    )


def _table(num_hidden: int, rule: TableRule) -> Model:
    return _by_tables(lambda c, ends: _feed_forward(c, num_hidden, rule, ends))


MODELS: dict[str, Model] = {
    "rnn": _by_tables(_recurrent, start="normal"),
    "pre_post_l2": _table(2, plasticity.pre_post),
    "pre_post_l3": _table(3, plasticity.pre_post),
    "pre_post_l4": _table(4, plasticity.pre_post),
    "pre_post_count_l2": _table(2, plasticity.pre_post_count),
    "pre_post_count_l3": _table(3, plasticity.pre_post_count),
    "pre_post_count_l4": _table(4, plasticity.pre_post_count),
    "pre_post_percent_l2": _table(2, plasticity.pre_post_percent),
    "post_count_l2": _table(2, plasticity.post_count),
    "gradient_descent_l2": Model(
        lambda c: None, lambda c: descent(_feed_forward(c, 2, plasticity.pre_post, (784, 10)), c)
    ),
}
