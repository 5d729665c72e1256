"""The two stages of a model: meta-learning upstream, and one pass over MNIST downstream."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import ESTIMATORS, Learned, Model, loss_of
from experiments.running import Run
from lax_learning import plasticity
from lax_learning.plasticity import MetaParams, State

PROBLEMS = {"half_space": ll.data.half_space, "relu_net": ll.data.relu_net}

Metrics = dict[str, jax.Array]


MetaCarry = tuple[State, ll.TrainState, jax.Array]  # structure of the network, training, key of the points


def decayed_adam(learning_rate: Any) -> optax.GradientTransformation:
    """Returns torch's Adam with the notebook's L2 decay."""
    return optax.chain(optax.add_decayed_weights(0.01), optax.adam(learning_rate))


def meta_learning(model: Model, config: Config, learning_rate: jax.Array | None = None) -> Run:
    """Meta-learning of one seed; a step is a rule epoch. The learning rate defaults to that of `config`."""
    network, hidden_init = model.upstream(config)
    optimizer = decayed_adam(config.learning_rate if learning_rate is None else learning_rate)
    num_train, num_test = config.points
    per_epoch = num_train // config.batch_size

    def points(key: jax.Array) -> ll.data.Splits:
        return PROBLEMS[config.problem](key, config.features, sizes=(num_train, 0, num_test))

    def training(structure: State) -> ll.Train:
        return plasticity.meta_learn(
            network, structure, optimizer, num_updates=config.chosen.rule_epochs * per_epoch,
            batch_size=config.batch_size, every=per_epoch,
            evaluate=lambda key, params, _, data: after_a_batch(structure, key, params, data),
            estimator=ESTIMATORS[config.estimator], loss=loss_of(config), hidden_init=hidden_init,
        )  # fmt: skip

    def after_a_batch(structure: State, key: jax.Array, params: MetaParams, data: ll.data.Splits) -> Metrics:
        """Accuracy, on training and test points, of a network that has learned from one batch."""
        chosen = jax.random.randint(key, (config.batch_size,), 0, num_train)
        start = network.reset(plasticity.with_params(structure, params))
        x, y = (jnp.asarray(a)[chosen] for a in data.train)
        learned, _, _ = plasticity.plastic_pass(network, params.tables, start, x, jnp.argmax(y, axis=-1))
        # As many training points as test points, in one forward pass.
        both = [jnp.concatenate([b, a[:num_test]]) for a, b in zip(data.train, data.test, strict=True)]
        output, y = network.apply(learned, both[0]), both[1]
        return {
            "train_accuracy": ll.accuracy(output[num_test:], y[num_test:]),
            "test_accuracy": ll.accuracy(output[:num_test], y[:num_test]),
            "test_balanced_accuracy": ll.balanced_accuracy(output[:num_test], y[:num_test]),
        }

    def init(key: jax.Array, shared: Any) -> MetaCarry:
        structure_key, data_key, train_key = jax.random.split(key, 3)
        structure = network.init(structure_key)
        return structure, training(structure).init(train_key, points(data_key)), data_key

    def step(carry: MetaCarry, number: jax.Array, shared: Any) -> tuple[MetaCarry, Metrics]:
        structure, state, data_key = carry
        train, first, data = training(structure), number * per_epoch, points(data_key)
        state, losses = train.advance(state, first, data)
        evaluation = train.evaluate(state, first + per_epoch, data)
        return (structure, state, data_key), {"loss": jnp.mean(losses), **evaluation}

    return Run(init, step, config.chosen.rule_epochs)


def one_pass(model: Model, config: Config) -> Run:
    """Downstream pass from a key and the learned tables; a step takes the images up to an evaluation."""
    downstream, samples = model.downstream(config), model.piece_size(config)

    def init(key: jax.Array, learned: Learned, data: Any) -> tuple[jax.Array, Any]:
        order_key, learner_key = jax.random.split(key)
        return order_key, downstream.init(learner_key, learned)

    def step(carry: tuple[jax.Array, Any], number: jax.Array, data: Any) -> tuple[Any, Metrics]:
        (key, learner), (train, test) = carry, data
        order = jax.random.permutation(key, train.x.shape[0])
        piece = jax.lax.dynamic_slice_in_dim(order, number * samples, samples)
        learner = downstream.advance(learner, *(jnp.asarray(a)[piece] for a in train))
        output = downstream.apply(learner, jnp.asarray(test.x))
        metrics = {
            "test_accuracy": ll.accuracy(output, test.y),
            "test_balanced_accuracy": ll.balanced_accuracy(output, test.y),
            "test_loss": jnp.mean(ll.softmax_cross_entropy(output, test.y)),
        }
        return (key, learner), metrics

    return Run(init, step, config.evaluations)
