"""Identities that hold exactly: with backprop, Kolen-Pollack's law, and limits that no rule may pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lax_learning as ll
from tests.compare import assert_close, assert_near, assert_same, normal, slow_but, update
from tests.registry import RULES

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
BATCH = 8
INIT = jax.nn.initializers.normal(0.3)
MODEL = ll.mlp((5, 7, 6, 3), activation=jnp.tanh, output_activation=jax.nn.sigmoid, b_init=INIT)
X, Y = normal(1, BATCH, 5), normal(2, BATCH, 3)
PARAMS = jax.jit(MODEL.init)(KEY)


def mean_loss(model: ll.Model, params: Any, x: Any, y: Any) -> Any:
    return jnp.mean(ll.squared_error(model.apply(params, x), y))


# --- identities with backprop


def test_backprop_is_the_gradient_to_the_last_bit() -> None:
    exact = jax.jit(jax.value_and_grad(partial(mean_loss, MODEL)))(PARAMS, X, Y)
    assert_same(update(ll.backprop(MODEL, ll.squared_error), KEY, PARAMS, X, Y)[1:3], exact)


# --- backprop through time, against loops in NumPy


@pytest.mark.parametrize("outputs", slow_but(["every"], ["last", "every"]))
def test_errors_go_back_in_time(outputs: Any, x64: None) -> None:
    steps, units = 5, 4
    options: Any = {"w_init": INIT, "recurrent_init": INIT, "b_init": INIT, "dtype": "float64"}
    model = ll.rnn((3, units, 2), outputs=outputs, **options)
    x, y = (np.random.default_rng(n).normal(size=(steps, BATCH, n)) for n in (3, 2))
    at = slice(None) if outputs == "every" else -1
    given = x.swapaxes(0, 1), y.swapaxes(0, 1)[:, at]
    makers = ll.feedback_alignment, partial(ll.sign_symmetry, gain=0.3), ll.direct_feedback_alignment
    rules = [make(model, ll.squared_error) for make in (ll.backprop, *makers)]

    @jax.jit
    def run(params: Any) -> Any:
        states = [rule.init(KEY, params, given[0]) for rule in rules]
        pairs = zip(rules, states, strict=True)
        return states, [rule.value_and_grad(KEY, params, state, *given)[:2] for rule, state in pairs]

    params = jax.jit(model.init)(KEY)
    states, found = run(params)
    first, second = jax.tree.map(np.asarray, params)
    h, error = np.zeros((steps + 1, BATCH, units)), np.zeros((steps, BATCH, 2))
    for t in range(steps):
        h[t + 1] = np.tanh(x[t] @ first["w"] + h[t] @ first["u"] + first["b"])
    error[at] = 2 / BATCH * (h[1:] @ second["w"] + second["b"] - y)[at]
    loss = BATCH / 4 * (error**2).sum()

    def gradients(of_read_out: Any, later: Callable[[int, Any], Any]) -> Any:
        """With weights `[units, outputs]` behind the read-out, and the signal from later steps."""
        delta = np.zeros((steps + 1, BATCH, units))
        for t in reversed(range(steps)):
            delta[t] = (error[t] @ np.transpose(of_read_out) + later(t, delta[t + 1])) * (1 - h[t + 1] ** 2)
        pairs = (x, delta[:-1]), (h[:-1], delta[:-1]), (h[1:], error)
        w, u, v = (np.einsum("tbi,tbj->ij", *pair) for pair in pairs)
        return loss, ({"w": w, "u": u, "b": delta.sum((0, 1))}, {"w": v, "b": error.sum((0, 1))})

    def passed(u: Any, v: Any) -> Any:
        return gradients(v, lambda t, delta: delta @ np.transpose(u))

    # Direct feedback has a matrix for the inputs of steps, which sends errors of each step or of the last.
    of_step, of_read_out = (np.asarray(b) for _, b in sorted(states[3].feedback.items()))
    ahead = error[1:] if outputs == "every" else error[[-1] * (steps - 1)]
    direct = gradients(of_read_out, lambda t, _: ahead[t] @ of_step.T if t < steps - 1 else 0)
    u, v, fixed = first["u"], second["w"], states[1].feedback
    of_others = passed(u, v), passed(fixed[0]["u"], fixed[1]["w"]), passed(0.3 * np.sign(u), 0.3 * np.sign(v))
    assert_near(found, [*of_others, direct], rtol=1e-10, atol=1e-12)


# --- Kolen-Pollack


def test_kolen_pollack_difference_follows_the_momentum_of_its_decay_alone(x64: None) -> None:
    """On fresh random batches, with the documented decay."""
    decay, rate, momentum, num_steps = 0.1, 0.05, 0.9, 6
    optimizer = optax.sgd(rate, momentum)
    rule = ll.kolen_pollack(MODEL, ll.squared_error, optimizer=optimizer)

    def step(carry: Any, batch: Any) -> Any:
        params, state, of_optimizer = carry
        _, grads, state = rule.value_and_grad(KEY, params, state, *batch)
        updates, of_optimizer = optimizer.update(grads, of_optimizer, params)
        params = optax.apply_updates(params, updates)
        return (params, state, of_optimizer), (params, state.feedback)

    @jax.jit
    def run(params: Any, *batches: Any) -> Any:
        state = rule.init(KEY, params, X)
        return state.feedback, lax.scan(step, (params, state, optimizer.init(params)), batches)[1]

    start = jax.tree.map(np.float64, PARAMS)
    first, (weights, feedback) = run(start, normal(3, num_steps, BATCH, 5), normal(4, num_steps, BATCH, 3))
    assert jax.tree.leaves(first[0]) == [] and all(layer["b"] is None for layer in first)
    for i in (1, 2):
        difference, velocity = start[i]["w"] - np.asarray(first[i]["w"]), 0.0
        assert np.abs(difference).max() > 0.1
        found = np.asarray(weights[i]["w"]) - np.asarray(feedback[i]["w"])
        for t in range(num_steps):
            velocity = momentum * velocity + decay * difference
            difference = difference - rate * velocity
            np.testing.assert_allclose(found[t], difference, rtol=0, atol=1e-13)


def test_feedback_moves_by_an_optimizer_that_looks_at_the_loss() -> None:
    rule = ll.kolen_pollack(MODEL, ll.squared_error, optimizer=optax.MultiSteps(optax.polyak_sgd(), 1))
    state, _, _, after = update(rule, KEY, PARAMS, X, Y)
    assert np.any(after.feedback[1]["w"] != state.feedback[1]["w"])


# --- perturbation


@jax.custom_jvp
def opaque(z: jax.Array) -> jax.Array:
    return jnp.tanh(z)


@opaque.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise AssertionError("autodiff was called")


@pytest.mark.parametrize("name", [name for name in RULES if "perturbation" in name] + ["spsa"])
def test_perturbation_never_calls_autodiff(name: str) -> None:
    model = ll.mlp((5, 4, 3), activation=opaque)
    rule, params = RULES[name](model, ll.squared_error), jax.eval_shape(model.init, KEY)
    state = jax.eval_shape(rule.init, KEY, params, X)
    jax.eval_shape(rule.value_and_grad, KEY, params, state, X, Y)
    with pytest.raises(AssertionError, match="autodiff was called"):
        jax.eval_shape(jax.grad(partial(mean_loss, model)), params, X, Y)


def test_spsa_is_its_estimator_at_the_number_of_updates() -> None:
    options: Any = {"perturbation": lambda count: 0.1 / (count + 1), "num_samples": 3}
    rule = ll.spsa(ll.Model(lambda w, x: jnp.tanh(x @ w)), ll.squared_error, **options)
    estimate = ll.estimators.spsa(lambda w: ll.squared_error(jnp.tanh(X @ w), Y), **options)

    @jax.jit
    def run(w: Any) -> Any:
        state, found = rule.init(KEY, w, X), []
        for count in range(2):
            loss, grads, state = rule.value_and_grad(KEY, w, state, X, Y)
            found.append(((loss, grads), estimate(KEY, w, count=count)))
        return found

    for pair in run(normal(3, 5, 3)):
        assert_close(*pair, ulps=64 / 0.03)  # losses of the order 1 over perturbations of 0.03
