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

pytest.importorskip("sklearn")
pytest.importorskip("mlxtend")
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

SIGMOIDS = ll.mlp((64, 32, 10), activation=jax.nn.sigmoid, w_init=jax.nn.initializers.normal(0.3))
RELUS = ll.mlp((784, 256, 10))
kolen_pollack = partial(ll.kolen_pollack, decay=0.002, optimizer=optax.sgd(0.03, momentum=0.9))
perturbation = partial(ll.node_perturbation, sigma=0.01, num_samples=4, noise="rademacher")
CHANCE = 0.1 + 5 * (0.1 * 0.9 / 297) ** 0.5  # of 297 test images, with 5 standard errors
ON_DIGITS = (ll.data.sklearn_digits, SIGMOIDS, ll.squared_error, 0.03, 200, CHANCE)
RULES: dict[str, Any] = {  # with data, model, loss, learning rate, number of updates and least accuracy
    "kolen_pollack": (kolen_pollack, *ON_DIGITS),
    "node_perturbation": (perturbation, *ON_DIGITS),
    # in the setting of its paper, with 4,000 images and 30 epochs
    "pepita": (ll.pepita, ll.data.mnist, RELUS, ll.softmax_cross_entropy, 0.1, 30 * (4000 // 64), 0.9),
}


@pytest.mark.parametrize("name", slow_but(["kolen_pollack"], RULES))
def test_rule_learns(name: str) -> None:
    make, load, model, loss, rate, num_updates, least = RULES[name]
    data = jax.tree.map(jnp.asarray, load(jax.random.key(1)))

    def accuracy(key: Any, params: Any, state: Any, data: Any) -> Any:
        return ll.accuracy(model.apply(params, data.test.x), data.test.y)

    train = ll.make_train(
        make(model, loss), optax.sgd(rate, momentum=0.9), init=model.init, num_updates=num_updates,
        batch_size=64, evaluate=accuracy,
    )  # fmt: skip
    accuracies = np.asarray(ll.ensemble(train)(jax.random.split(jax.random.key(0)), data).evaluations)
    assert (accuracies[:, -1] > least).all(), accuracies


@pytest.mark.slow
def test_learned_feedback_points_along_the_gradient() -> None:
    """784-100-100-100-10 with tanh on 5,000 images: cosine to backprop in hidden layers after 20 epochs."""
    of = ll.mlp((784, 100, 100, 100, 10), activation=jnp.tanh), ll.softmax_cross_entropy
    key = jax.random.key(3)
    data, exact = jax.tree.map(jnp.asarray, ll.data.mnist(key)), ll.backprop(*of)

    def cosines(rule: ll.Rule) -> np.ndarray:
        def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
            true = exact.value_and_grad(key, params, (), *data.test)[1]
            found = rule.value_and_grad(key, params, state, *data.test)[1]
            of_layers = ll.metrics.by_path(ll.metrics.cosine_similarity, found, true, depth=1)
            return jnp.stack(list(of_layers.values())[:3])

        train = ll.make_train(
            rule, optax.sgd(0.05, momentum=0.9), init=of[0].init, num_updates=20 * (len(data.train.x) // 100),
            batch_size=100, evaluate=evaluate,
        )  # fmt: skip
        history = ll.ensemble(train, batch_size=2)(jax.random.split(key, 32), data)
        return np.asarray(history.evaluations)[:, -1].mean(axis=0)

    direct = cosines(ll.direct_feedback_alignment(*of))
    assert ((direct > 0.5) & (direct < 0.75)).all()
    assert (cosines(ll.forward_direct_feedback(*of, optimizer=optax.sgd(0.01))) > 0.9).all()
    assert (cosines(ll.weight_mirror(*of, optimizer=optax.sgd(0.1))) > 0.9).all()
