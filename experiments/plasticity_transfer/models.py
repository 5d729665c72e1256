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


class Downstream(NamedTuple):
    """Learner that sees every image once."""

    init: Callable[[jax.Array, Learned], Any]  # (key, learned upstream) -> carry
    advance: Callable[[Any, jax.Array, jax.Array], Any]  # (carry, x, y [samples, labels]) -> carry
    apply: Callable[[Any, jax.Array], jax.Array]  # (carry, x [samples, inputs]) -> output [samples, labels]


def plastic(network: KCapNetwork) -> Downstream:
    """Returns a learner with transferred tables, without gradients."""

    def init(key: jax.Array, learned: Learned) -> tuple[Tables, State]:
        return plasticity.transfer(learned[0], network), network.init(key)

    def advance(carry: tuple[Tables, State], x: jax.Array, y: jax.Array) -> tuple[Tables, State]:
        tables, state = carry
        return tables, plasticity.plastic_pass(network, tables, state, x, jnp.argmax(y, axis=-1))[0]

    return Downstream(init, advance, lambda carry, x: network.apply(carry[1], x))


def descent(network: KCapNetwork, config: Config) -> Downstream:
    """Returns a learner of all weights by Adam, from initial weights uniform in -0.5..0.5."""
    optimizer, batch_size = optax.adam(config.chosen.descent_rate), config.chosen.descent_batch

    def init(key: jax.Array, learned: Learned) -> Any:
        state_key, w_key = jax.random.split(key)
        state = network.init(state_key)
        keys = jax.random.split(w_key, len(state))
        weights = [
            jax.random.uniform(k, layer["w"].shape, layer["w"].dtype, -0.5, 0.5)
            for k, layer in zip(keys, state, strict=True)
        ]
        return weights, [layer["mask"] for layer in state], optimizer.init(weights)

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

    return Downstream(init, advance, apply)


Ends = tuple[int, int]  # numbers of inputs and labels


class Model(NamedTuple):
    """A model of the comparison, which learns by tables or by gradient descent."""

    network: Callable[[Config, Ends], KCapNetwork]
    hidden_start: str | None = None  # initial hidden tables; by default those of the configuration
    by_tables: bool = True

    def upstream(self, config: Config) -> tuple[KCapNetwork, jax.nn.initializers.Initializer]:
        """Returns the network whose tables are meta-learned, and the initialiser of its hidden tables."""
        start = HIDDEN_STARTS[self.hidden_start or config.hidden_start]
        return self.network(config, (config.features, 2)), start

    def downstream(self, config: Config) -> Downstream:
        """Returns the learner of the images."""
        network = self.network(config, (784, 10))
        return plastic(network) if self.by_tables else descent(network, config)

    def piece_size(self, config: Config) -> int:
        """Returns the number of images between two evaluations, a multiple of the batch size of descent."""
        multiple = 1 if self.by_tables else config.chosen.descent_batch
        return config.chosen.train_samples // config.evaluations // multiple * multiple


def _recurrent(config: Config, ends: Ends) -> KCapNetwork:
    scheme = Scheme(samples=config.chosen.rnn_samples, rows=config.chosen.rnn_rows)
    options = {"edge_probability": config.edge_probability, "scheme": scheme}
    return plasticity.k_cap_recurrent((ends[0], config.width, ends[1]), config.cap, fired="index", **options)


def _feed_forward(num_hidden: int, rule: TableRule, config: Config, ends: Ends) -> KCapNetwork:
    widths = (ends[0], *(config.width,) * num_hidden, ends[1])
    return plasticity.k_cap_mlp(widths, config.cap, edge_probability=config.edge_probability, rule=rule)


MODELS: dict[str, Model] = {
    "rnn": Model(_recurrent, hidden_start="normal"),
    "pre_post_l2": Model(partial(_feed_forward, 2, plasticity.pre_post)),
    "pre_post_l3": Model(partial(_feed_forward, 3, plasticity.pre_post)),
    "pre_post_l4": Model(partial(_feed_forward, 4, plasticity.pre_post)),
    "pre_post_count_l2": Model(partial(_feed_forward, 2, plasticity.pre_post_count)),
    "pre_post_count_l3": Model(partial(_feed_forward, 3, plasticity.pre_post_count)),
    "pre_post_count_l4": Model(partial(_feed_forward, 4, plasticity.pre_post_count)),
    "pre_post_percent_l2": Model(partial(_feed_forward, 2, plasticity.pre_post_percent)),
    "post_count_l2": Model(partial(_feed_forward, 2, plasticity.post_count)),
    "gradient_descent_l2": Model(partial(_feed_forward, 2, plasticity.pre_post), by_tables=False),
}
