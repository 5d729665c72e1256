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
from tests.compare import assert_close, assert_same, normal, slow_but, update
from tests.registry import RULES

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


KEY = jax.random.key(0)
BATCH = 8
INIT = jax.nn.initializers.normal(0.3)
MODEL = ll.mlp((5, 7, 6, 3), activation=jnp.tanh, output_activation=jax.nn.sigmoid, b_init=INIT)
X, Y = normal(1, BATCH, 5), normal(2, BATCH, 3)
PARAMS = MODEL.init(KEY)


def mean_loss(model: ll.Model, params: Any, x: Any, y: Any) -> Any:
    return jnp.mean(ll.squared_error(model.apply(params, x), y))


def where_fed_back(function: Callable[..., Any], feedback: Any, *trees: Any) -> Any:
    """`function(feedback, *leaves)` where there is feedback, None elsewhere."""
    return jax.tree.map(
        lambda b, *leaves: None if b is None else function(b, *leaves),
        feedback,
        *trees,
        is_leaf=lambda leaf: leaf is None,
    )


# --- identities with backprop


def test_backprop_is_the_gradient_to_the_last_bit() -> None:
    exact = jax.jit(jax.value_and_grad(partial(mean_loss, MODEL)))(PARAMS, X, Y)
    assert_same(update(ll.backprop(MODEL, ll.squared_error), KEY, PARAMS, X, Y)[1:3], exact)


def test_feedback_of_the_size_of_the_weights_is_backprop() -> None:
    """Signs are those of the weights whatever the feedback's, and a gain multiplies it."""
    rules = {
        1: ll.kolen_pollack(MODEL, ll.squared_error, decay=0.0, optimizer=optax.sgd(0.1)),
        -2: ll.sign_symmetry(MODEL, ll.squared_error, magnitude="fixed", gain=0.5),
    }

    @jax.jit
    def run(params: Any) -> Any:
        found = []
        for factor, rule in rules.items():
            state = rule.init(KEY, params, X)
            like = params if factor == 1 else jax.tree.map(lambda w, f=factor: f * jnp.abs(w), params)
            size = where_fed_back(lambda _, w: w, state.feedback, like)
            found.append(rule.value_and_grad(KEY, params, state._replace(feedback=size), X, Y)[:2])
        return found, jax.value_and_grad(partial(mean_loss, MODEL))(params, X, Y)

    found, exact = run(PARAMS)
    for value_and_grads in found:  # the order of summation is the compiler's
        assert_close(value_and_grads, exact, ulps=64)


# --- backprop through time, against loops in NumPy

STEPS, INPUTS, UNITS, OUTPUTS = 5, 3, 4, 2


class Loops:
    """A recurrent layer and a read-out of the last or every state, written out in NumPy."""

    def __init__(self, params: Any, x: Any, y: Any) -> None:
        first, second = jax.tree.map(np.asarray, params)
        self.x, self.y = np.asarray(x), np.asarray(y)
        self.z, self.states, self.before = np.zeros((3, BATCH, STEPS, UNITS))
        state = np.zeros((BATCH, UNITS))
        for t in range(STEPS):
            self.before[:, t] = state
            self.z[:, t] = self.x[:, t] @ first["w"] + state @ first["u"] + first["b"]
            state = self.states[:, t] = np.tanh(self.z[:, t])
        every = self.states @ second["w"] + second["b"]
        self.output = every if self.y.ndim == 3 else every[:, -1]
        self.loss = ((self.output - self.y) ** 2).sum() / BATCH

    def gradients(self, recurrent: Any, read_out: Any, direct: Any = None) -> Any:
        """With these weights on the way back: `recurrent [units, units]`, others `[units, outputs]`."""
        error = np.zeros((BATCH, STEPS, OUTPUTS))
        of_outputs = error if self.y.ndim == 3 else error[:, -1]
        of_outputs[:] = 2 / BATCH * (self.output - self.y)
        delta, back = np.zeros_like(self.states), np.zeros((BATCH, UNITS))
        for t in reversed(range(STEPS)):
            slope = 1 - np.tanh(self.z[:, t]) ** 2
            if direct is None:
                delta[:, t] = (error[:, t] @ read_out.T + back) * slope
                back = delta[:, t] @ recurrent.T
            else:  # what a step reads has one matrix, what the read-out reads another
                of_step, of_read_out = direct
                every, is_last = self.y.ndim == 3, t == STEPS - 1
                back = 0 if is_last else error[:, t + 1 if every else -1] @ of_step.T
                delta[:, t] = (back + (error[:, t] @ of_read_out.T if every or is_last else 0)) * slope
        products = {"w": (self.x, delta), "u": (self.before, delta)}
        return (
            {name: np.einsum("bti,btj->ij", *pair) for name, pair in products.items()}
            | {"b": delta.sum((0, 1))},
            {"w": np.einsum("bti,btj->ij", self.states, error), "b": error.sum((0, 1))},
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", slow_but(["every"], ["last", "every"]))
def test_errors_go_back_in_time(outputs: Any) -> None:
    options: Any = {"w_init": INIT, "recurrent_init": INIT, "b_init": INIT, "dtype": "float64"}
    model = ll.rnn((INPUTS, UNITS, OUTPUTS), outputs=outputs, **options)
    x, y = (np.random.default_rng(i).normal(size=(BATCH, STEPS, n)) for i, n in enumerate((INPUTS, OUTPUTS)))
    y = y if outputs == "every" else y[:, -1]
    params = model.init(KEY)
    loops = Loops(params, x, y)

    @jax.jit
    def run(params: Any) -> Any:
        makers = {
            "backprop": ll.backprop,
            "feedback_alignment": ll.feedback_alignment,
            "sign_symmetry_unit": partial(ll.sign_symmetry, gain=0.3),
            "direct_feedback_alignment": ll.direct_feedback_alignment,
        }
        rules = {name: make(model, ll.squared_error) for name, make in makers.items()}
        states = {name: rule.init(KEY, params, x) for name, rule in rules.items()}
        return states, {n: rule.value_and_grad(KEY, params, states[n], x, y)[:2] for n, rule in rules.items()}

    states, found = run(params)
    fixed = states["feedback_alignment"].feedback
    direct = [np.asarray(b) for _, b in sorted(states["direct_feedback_alignment"].feedback.items())]
    u, w = (np.asarray(leaf) for leaf in (params[0]["u"], params[1]["w"]))
    expected = {
        "backprop": loops.gradients(u, w),
        "feedback_alignment": loops.gradients(np.asarray(fixed[0]["u"]), np.asarray(fixed[1]["w"])),
        "sign_symmetry_unit": loops.gradients(0.3 * np.sign(u), 0.3 * np.sign(w)),
        "direct_feedback_alignment": loops.gradients(None, None, direct),
    }
    for name, (loss, grads) in found.items():
        np.testing.assert_allclose(loss, loops.loss, rtol=1e-12)
        same = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12, err_msg=name)
        jax.tree.map(same, grads, expected[name])


# --- Kolen-Pollack

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.05), "momentum": optax.sgd(0.05, 0.9), "adam": optax.adam(0.05)
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", slow_but(["momentum"], OPTIMIZERS))
def test_kolen_pollack_difference_shrinks_by_decay_alone(name: str) -> None:
    """On fresh random batches; under Adam the feedback follows Adam's own recursion."""
    decay, num_steps, optimizer = 0.4, 6, OPTIMIZERS[name]
    rule = ll.kolen_pollack(MODEL, ll.squared_error, decay=decay, optimizer=optimizer)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
    state = rule.init(KEY, start, X)
    feedback = state.feedback

    def step(carry: Any, key: Any) -> Any:
        params, state, of_optimizer = carry
        x_key, y_key, rule_key = jax.random.split(key, 3)
        x, y = (jax.random.normal(k, like.shape, jnp.float64) for k, like in ((x_key, X), (y_key, Y)))
        _, grads, after = rule.value_and_grad(rule_key, params, state, x, y)
        updates, of_optimizer = optimizer.update(grads, of_optimizer, params)
        moved = optax.apply_updates(params, updates)
        # What the gradient by the data has of the decay is known, and so what moves the feedback.
        by_data = where_fed_back(lambda _, g, w: g - decay * w, state.feedback, grads, params)
        moves = jax.tree.map(lambda g, b: g + decay * b, by_data, state.feedback)
        return (moved, after, of_optimizer), (moved, after.feedback, moves)

    @jax.jit
    def run(params: Any) -> Any:
        keys = jax.random.split(KEY, num_steps)
        return lax.scan(step, (params, state, optimizer.init(params)), keys)[1]

    weights, path, moves = run(start)
    assert jax.tree.leaves(feedback[0]) == [] and all(layer["b"] is None for layer in feedback)
    own = optimizer.init(feedback)
    for t in range(num_steps):
        updates, own = optimizer.update(jax.tree.map(lambda g, t=t: g[t], moves), own, feedback)
        feedback = optax.apply_updates(feedback, updates)
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-12), jax.tree.map(lambda b, t=t: b[t], path), feedback
        )
    if name == "adam":
        return
    for i in (1, 2):
        difference, velocity = start[i]["w"] - state.feedback[i]["w"], 0.0
        assert float(jnp.abs(difference).max()) > 0.1
        for t in range(num_steps):
            velocity = (0.9 if name == "momentum" else 0.0) * velocity + decay * difference
            difference = difference - 0.05 * velocity
            if name == "sgd":
                shrunk = (1 - 0.05 * decay) ** (t + 1) * (start[i]["w"] - state.feedback[i]["w"])
                np.testing.assert_allclose(difference, shrunk, rtol=0, atol=1e-14)
            np.testing.assert_allclose(weights[i]["w"][t] - path[i]["w"][t], difference, rtol=0, atol=1e-13)


def test_kolen_pollack_decays_what_has_feedback() -> None:
    by_decay: dict[Any, Any] = {}
    for decay in (0.0, 0.3, None):
        options: Any = {} if decay is None else {"decay": decay}
        rule = ll.kolen_pollack(MODEL, ll.squared_error, optimizer=optax.sgd(1.0), **options)
        by_decay[decay] = update(rule, KEY, PARAMS, X, Y)
    state, _, plain, _ = by_decay.pop(0.0)
    for decay, (_, _, decayed, after) in by_decay.items():
        rate = 0.1 if decay is None else decay  # as documented
        for i, (w, b) in enumerate(zip(PARAMS, state.feedback, strict=True)):
            assert_same(decayed[i]["b"], plain[i]["b"])
            if i:
                assert_close(decayed[i]["w"], plain[i]["w"] + rate * w["w"], ulps=2)
                assert_close(after.feedback[i]["w"], b["w"] - (plain[i]["w"] + rate * b["w"]), ulps=2)
            else:
                assert_same(decayed[i]["w"], plain[i]["w"])


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


def iterated(z: jax.Array) -> jax.Array:
    """A loop without a known end, which reverse mode cannot pass, and a call to NumPy, which no mode can."""
    z = lax.while_loop(lambda z: jnp.max(jnp.abs(z)) > 0.5, lambda z: 0.5 * z, z)
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(z.shape, z.dtype), z, vmap_method="broadcast_all")


ON_WEIGHTS = ("weight_perturbation", "weight_perturbation_central_signs", "weight_perturbation_3", "spsa")
ON_UNITS = (
    "node_perturbation",
    "node_perturbation_activity",
    "node_perturbation_signs",
    "node_perturbation_shared",
    "node_perturbation_3",
    "node_perturbation_batch",
)


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        (opaque, ("node_perturbation_batch",)),
        (iterated, ("weight_perturbation_central_signs", "spsa")),
        pytest.param(opaque, ON_WEIGHTS + ON_UNITS, marks=pytest.mark.slow),
        pytest.param(iterated, ON_WEIGHTS, marks=pytest.mark.slow),
    ],
    ids=["opaque", "iterated", "opaque, all", "iterated, all"],
)
def test_perturbation_never_calls_autodiff(activation: Callable[..., Any], names: tuple[str, ...]) -> None:
    model = ll.mlp((5, 4, 3), activation=activation, b_init=INIT)
    rules, params = {name: RULES[name](model, ll.squared_error) for name in names}, model.init(KEY)

    @jax.jit
    def run(params: Any) -> Any:
        states = {name: rule.init(KEY, params, X) for name, rule in rules.items()}
        return {n: rule.value_and_grad(KEY, params, states[n], X, Y)[:2] for n, rule in rules.items()}

    for name, (loss, grads) in run(params).items():
        assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads)), name
        assert_close(loss, mean_loss(model, params, X, Y), ulps=8)
    with pytest.raises((AssertionError, ValueError), match=r"autodiff was called|Pure callbacks|while_loop"):
        jax.grad(partial(mean_loss, model))(params, X, Y)


def test_spsa_is_its_estimator_at_the_number_of_updates() -> None:
    options: Any = {"perturbation": lambda count: 0.1 / (count + 1), "num_samples": 3}
    rule = ll.spsa(MODEL, ll.squared_error, **options)
    estimate = ll.estimators.spsa(lambda params: ll.squared_error(MODEL.apply(params, X), Y), **options)

    @jax.jit
    def run(params: Any) -> Any:
        state, found, expected = rule.init(KEY, params, X), [], []
        for count in range(2):
            loss, grads, state = rule.value_and_grad(KEY, params, state, X, Y)
            found.append((loss, grads))
            expected.append(estimate(KEY, params, count=count))
        return found, expected

    # losses of the order 1 over perturbations of 0.03
    assert_close(*run(PARAMS), ulps=64 / 0.03)
