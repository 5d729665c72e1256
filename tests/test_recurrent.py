"""Recurrent networks against loops in NumPy, and against backprop through time, under every rule."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from tests.compare import assert_close, assert_same, differs
from tests.refusal import parametrize_cases, refuses
from tests.registry import RULES
from tests.test_identities import largest_array

KEY = jax.random.key(0)
INIT = jax.nn.initializers.normal(0.5)
BATCH, STEPS, INPUTS, UNITS, OUTPUTS = 6, 5, 3, 4, 2


def make(outputs: str = "last", hidden: tuple[int, ...] = (UNITS,), dtype: Any = jnp.float32) -> ll.Network:
    return ll.rnn(
        (INPUTS, *hidden, OUTPUTS),
        steps=STEPS,
        outputs=outputs,
        w_init=INIT,
        recurrent_init=INIT,
        b_init=INIT,
        dtype=dtype,
    )


def batch(outputs: str = "last", dtype: Any = jnp.float32) -> tuple[Any, Any]:
    shape = (BATCH, OUTPUTS) if outputs == "last" else (BATCH, STEPS, OUTPUTS)
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (BATCH, STEPS, INPUTS), dtype), jax.random.normal(keys[1], shape, dtype)


def gradient(rule: ll.Rule, params: Any, outputs: str = "last") -> Any:
    dtype = params[0]["w"].dtype
    loss, grads = jax.jit(rule.value_and_grad)(KEY, params, *batch(outputs, dtype))
    return loss, ll.without_feedback(grads)


class Loops:
    """A recurrent layer and a read-out of the last or every state, written out in NumPy."""

    def __init__(self, params: Any, x: Any, y: Any, noise: Any = None) -> None:
        first, second = (jax.tree.map(np.asarray, weights) for weights in params)
        x, self.y = np.asarray(x), np.asarray(y)
        noise = np.zeros((BATCH, STEPS, UNITS)) if noise is None else np.asarray(noise)
        w, u = first["w"][:INPUTS], first["w"][INPUTS:]
        self.z, self.states = np.zeros((2, BATCH, STEPS, UNITS))
        state, before = np.zeros((BATCH, UNITS)), []
        for t in range(STEPS):
            before.append(state)
            self.z[:, t] = x[:, t] @ w + state @ u + first["b"]
            state = self.states[:, t] = np.tanh(self.z[:, t]) + noise[:, t]
        self.read = np.concatenate([x, np.stack(before, axis=1)], axis=2)
        self.every = self.states @ second["w"] + second["b"]
        self.output = self.every if self.y.ndim == 3 else self.every[:, -1]
        self.loss = ((self.output - self.y) ** 2).sum() / BATCH

    def gradients(self, recurrent: Any, read_out: Any, direct: Any = None) -> Any:
        """With these weights on the way back: `recurrent [units, units]`, `read_out [units, outputs]`."""
        error = np.zeros((BATCH, STEPS, OUTPUTS))
        of_outputs = error if self.y.ndim == 3 else error[:, -1]
        of_outputs[:] = 2 / BATCH * (self.output - self.y)
        delta, back = np.zeros_like(self.states), np.zeros((BATCH, UNITS))
        for t in reversed(range(STEPS)):
            slope = 1 - np.tanh(self.z[:, t]) ** 2
            if direct is None:
                delta[:, t] = (error[:, t] @ read_out.T + back) * slope
                back = delta[:, t] @ recurrent.T
            else:  # the error at the end, by weights of the step's own
                delta[:, t] = error[:, -1] @ direct.reshape(STEPS, UNITS, OUTPUTS)[t].T * slope
        return (
            {"w": np.einsum("bti,btj->ij", self.read, delta), "b": delta.sum((0, 1))},
            {"w": np.einsum("bti,btj->ij", self.states, error), "b": error.sum((0, 1))},
        )


def close(got: Any, expected: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), got, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", ["last", "every"])
def test_backprop_is_backprop_through_time(outputs: str) -> None:
    network = make(outputs, dtype=jnp.float64)
    params, (x, y) = network.init(KEY), batch(outputs, jnp.float64)
    loops = Loops(params, x, y)
    trace = network.forward(params, x)
    close(trace.inputs[0], loops.read)
    close(trace.pre_activations[0], loops.z)
    close(trace.activities, (loops.states, loops.output))
    loss, grads = gradient(ll.backprop(network, ll.squared_error), params, outputs)
    close(loss, loops.loss)
    close(grads, loops.gradients(params[0]["w"][INPUTS:], params[1]["w"]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", ["last", "every"])
def test_feedback_alignment_carries_errors_back_in_time(outputs: str) -> None:
    network, (x, y) = make(outputs, dtype=jnp.float64), batch(outputs, jnp.float64)
    for factory in (ll.feedback_alignment, partial(ll.kolen_pollack, decay=0.0)):
        rule = factory(network, ll.squared_error)
        params = rule.init(KEY)
        backward = params[0]["feedback"][INPUTS:], params[1]["feedback"]
        close(gradient(rule, params, outputs)[1], Loops(params, x, y).gradients(*backward))
    rule = ll.sign_symmetry(network, ll.squared_error, gain=0.3)
    params = rule.init(KEY)
    backward = 0.3 * np.sign(params[0]["w"][INPUTS:]), 0.3 * np.sign(params[1]["w"])
    close(gradient(rule, params, outputs)[1], Loops(params, x, y).gradients(*backward))


@pytest.mark.usefixtures("x64")
def test_direct_feedback_alignment_sends_the_error_to_every_step() -> None:
    network, (x, y) = make(dtype=jnp.float64), batch(dtype=jnp.float64)
    rule = ll.direct_feedback_alignment(network, ll.squared_error)
    params = rule.init(KEY)
    assert params[0]["feedback"].shape == (STEPS * UNITS, OUTPUTS)
    expected = Loops(params, x, y).gradients(None, None, np.asarray(params[0]["feedback"]))
    close(gradient(rule, params)[1], expected)


@pytest.mark.usefixtures("x64")
def test_noise_on_activities_goes_on_in_time() -> None:
    network, (x, y) = make(dtype=jnp.float64), batch(dtype=jnp.float64)
    params, noise = network.init(KEY), 0.1 * jax.random.normal(KEY, (BATCH, STEPS, UNITS), jnp.float64)
    noisy = network.forward(params, x, activity_taps=(noise, jnp.zeros((BATCH, OUTPUTS))))
    loops = Loops(params, x, y, noise)
    close(noisy.activities, (loops.states, loops.output))
    close(noisy.inputs[0], loops.read)


DEEP = make(hidden=(4, 3))


def with_weights_as_feedback(params: Any, of: Any = lambda i, w: w) -> Any:
    return tuple({**weights, "feedback": of(i, weights["w"])} for i, weights in enumerate(params))


def test_feedback_equal_to_the_weights_is_backprop_through_time() -> None:
    params = DEEP.init(KEY)
    exact = gradient(ll.backprop(DEEP, ll.squared_error), params)
    for factory in (
        ll.feedback_alignment,
        partial(ll.kolen_pollack, decay=0.0),
        partial(ll.sign_symmetry, magnitude="fixed"),
    ):
        rule = factory(DEEP, ll.squared_error)
        assert_close(gradient(rule, with_weights_as_feedback(params)), exact, ulps=64)
    rule = ll.feedback_alignment(DEEP, ll.squared_error)
    for layer, rows in ((0, slice(INPUTS, None)), (1, slice(4)), (1, slice(4, None)), (2, slice(None))):

        def other(i: int, w: Any, layer: int = layer, rows: slice = rows) -> Any:
            return w.at[rows].multiply(-1) if i == layer else w

        changed = gradient(rule, with_weights_as_feedback(params, other))
        assert differs(changed[1][0], exact[1][0]), "no error came back through these weights"
    # what is below the first layer learns nothing
    below = with_weights_as_feedback(params, lambda i, w: w.at[:INPUTS].set(9) if i == 0 else w)
    assert_same(gradient(rule, below), gradient(rule, with_weights_as_feedback(params)))


def test_layers_that_pass_errors_on_have_feedback() -> None:
    assert DEEP.passes_error_on == (True, True, True)
    assert ll.mlp((3, 4, 2)).passes_error_on == (False, True)
    params = ll.feedback_alignment(DEEP, ll.squared_error).init(KEY)
    for weights in params:
        assert weights["feedback"].shape == weights["w"].shape and differs(weights["feedback"], weights["w"])
    assert_same(ll.without_feedback(params), ll.backprop(DEEP, ll.squared_error).init(KEY))
    # Kolen-Pollack: one update for each pair, and decay of both
    rule = ll.kolen_pollack(DEEP, ll.squared_error, decay=0.3)
    _, grads = jax.jit(rule.value_and_grad)(KEY, params, *batch())
    for weights, grad in zip(*jax.tree.map(np.asarray, (params, grads)), strict=True):
        expected = 0.3 * (weights["w"] - weights["feedback"])
        np.testing.assert_allclose(grad["w"] - grad["feedback"], expected, atol=1e-5)


def test_a_step_sees_no_later_one_and_params_no_number_of_steps() -> None:
    network, (x, _) = make("every"), batch("every")
    params = network.init(KEY)
    plain, other = network.apply(params, x), network.apply(params, x.at[:, 3].add(1))
    assert_same(other[:, :3], plain[:, :3])
    assert all(differs(other[:, t], plain[:, t]) for t in (3, 4))
    longer = ll.rnn((3, 4, 2), steps=9, w_init=INIT, recurrent_init=INIT, b_init=INIT)
    assert_same(longer.init(KEY), params)
    assert [w["w"].shape for w in ll.rnn((3, 4, 2), steps=9, b_init=None).init(KEY)] == [(7, 4), (4, 2)]


@pytest.mark.parametrize("outputs", ["last", "every"])
def test_moments_over_sequences(outputs: str) -> None:
    # A sum over steps is no outer product: the moments are those of each example's own gradient.
    network, (x, y) = make(outputs), batch(outputs)
    rule, params = ll.backprop(network, ll.squared_error), network.init(KEY)

    @jax.jit
    def both(x: Any, y: Any) -> Any:
        one = jax.vmap(lambda x, y: rule.value_and_grad(KEY, params, x[None], y[None])[1])(x, y)
        return metrics.example_moments(network, rule, KEY, params, x, y), one

    moments, one = jax.tree.map(np.asarray, both(x, y))
    assert_close(moments.mean, jax.tree.map(lambda g: g.mean(axis=0), one), ulps=64)
    assert_close(moments.variance, jax.tree.map(lambda g: g.var(axis=0, ddof=1), one), ulps=256)


def test_decorrelated_recurrent_networks() -> None:
    network, (x, y), dynamics = make(), batch(), ll.decorrelation(0.1)
    state, params = dynamics.init(network), network.init(KEY)
    assert [layer["R"].shape[0] for layer in state.layers] == [INPUTS + UNITS, UNITS]
    exact = ll.backprop(network, ll.squared_error).value_and_grad(KEY, params, x, y)
    on_identity = ll.backprop(ll.decorrelated(network, state), ll.squared_error)
    assert_close(on_identity.value_and_grad(KEY, params, x, y), exact, ulps=16)
    inputs = network.forward(params, x).inputs
    state, diagnostics = dynamics.update(KEY, state, inputs, network)
    # all steps of what the recurrent layer reads, the last state of what the read-out does
    rows = inputs[0].reshape(-1, INPUTS + UNITS)
    by_hand, losses = dynamics.update(KEY, dynamics.init(network), (rows, inputs[1][:, -1]))
    assert_close(state.layers, by_hand.layers, ulps=16)
    assert_close(diagnostics, losses, ulps=16)
    folded = ll.fold(network, params, state)
    expected = ll.decorrelated(network, state).apply(params, x)
    assert_close(network.apply(folded, x), expected, ulps=64)
    assert differs(network.apply(params, x), expected)


@pytest.mark.parametrize("name", ["backprop", "np", "fa"])
def test_no_array_of_batch_or_steps_times_weights(name: str) -> None:
    batch, steps, inputs, units, outputs = 31, 29, 37, 41, 43
    network = ll.rnn((inputs, units, outputs), steps=steps)
    rule = RULES[name](network, ll.squared_error)
    x = jax.ShapeDtypeStruct((batch, steps, inputs), jnp.float32)
    y = jax.ShapeDtypeStruct((batch, outputs), jnp.float32)
    largest = largest_array(rule.value_and_grad, KEY, jax.eval_shape(rule.init, KEY), x, y)
    assert largest < min(batch, steps) * (inputs + units) * units


def pooled(z: Any) -> Any:
    return z[:, ::2]


CASES = {
    "widths": (
        lambda: ll.rnn((3, 2), steps=4),
        ValueError,
        "^widths: expected at least an input, a recurrent and an output size",
    ),
    "width": (lambda: ll.rnn((3, 0, 2), steps=4), ValueError, r"^widths\[1\]: expected at least 1, got 0"),
    "steps": (lambda: ll.rnn((3, 4, 2), steps=0), ValueError, "^steps: expected at least 1, got 0"),
    "steps-type": (lambda: ll.rnn((3, 4, 2), steps=2.5), TypeError, "^steps: expected an int, got 2.5"),  # type: ignore[arg-type]
    "outputs": (
        lambda: ll.rnn((3, 4, 2), steps=4, outputs="all"),
        ValueError,
        r"^outputs: expected one of \['every', 'last'\], got 'all'",
    ),
    "num_inputs": (lambda: ll.recurrent(0, 4), ValueError, "^num_inputs: expected at least 1, got 0"),
    "num_units": (lambda: ll.recurrent(3, 0), ValueError, "^num_units: expected at least 1, got 0"),
    "length": (
        lambda: make().apply(make().init(KEY), jnp.ones((2, 4, 3))),
        ValueError,
        r"^x: expected shape \[batch, 5, 3\], got \[2, 4, 3\]",
    ),
    "no sequence": (
        lambda: (n := ll.Network((ll.recurrent(3, 4),), (3,))).apply(n.init(KEY), jnp.ones((2, 3))),
        ValueError,
        r"^x: expected \[batch, steps, ...\] for a layer with a state, got \[2, 3\]",
    ),
    "activation": (
        lambda: (n := ll.Network((ll.recurrent(3, 4, pooled),), (5, 3))).apply(
            n.init(KEY), jnp.ones((2, 5, 3))
        ),
        ValueError,
        r"^activation: expected one that keeps the shape \[2, 4\] of the state, got \[2, 2\]",
    ),
    "activity_taps": (
        lambda: make().forward(make().init(KEY), batch()[0], activity_taps=[jnp.zeros((6, 5, 4))]),
        ValueError,
        "^activity_taps: expected 2 layers, got 1",
    ),
    "feedback": (
        lambda: ll.feedback_alignment(make(), ll.squared_error).value_and_grad(
            KEY, make().init(KEY), *batch()
        ),
        ValueError,
        r"^params\[0\]: expected the entry 'feedback', see init, got",
    ),
    "loss": (
        lambda: ll.backprop(make("every"), lambda o, y: (o - y)[..., 0] ** 2).value_and_grad(
            KEY, make().init(KEY), *batch("every")
        ),
        ValueError,
        r"^loss: expected one number an example, shape \[6\], got \[6, 5\]",
    ),
}


@pytest.mark.usefixtures("as_a_user_sees_it")
@parametrize_cases(CASES)
def test_bad_input(call: Any, error: Any, pattern: str) -> None:
    refuses(call, error, pattern)


def test_cross_entropy_of_sequences_is_the_sum_over_steps() -> None:
    logits, labels = batch("every")[1], jax.nn.one_hot(jnp.arange(BATCH * STEPS).reshape(BATCH, STEPS) % 2, 2)
    by_step = [ll.softmax_cross_entropy(logits[:, t], labels[:, t]) for t in range(STEPS)]
    assert_close(ll.softmax_cross_entropy(logits, labels), sum(by_step[1:], by_step[0]), ulps=16)
