"""What holds exactly: identities with backprop, Kolen-Pollack's law, and what no rule may do."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from lax_learning.feedback import without_feedback

import lax_learning as ll
from lax_learning import metrics
from tests.compare import assert_close, assert_same, differs
from tests.registry import MODEL_RULES, RULES, RULES_WITH_SCALE, as_model, on_model

# For programs that are looked at, or compared with others compiled alike: half the time to compile.
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

KEY = jax.random.key(0)
BATCH = 8
NETWORK = ll.mlp(
    (5, 7, 6, 3),
    activation=jnp.tanh,
    output_activation=jax.nn.sigmoid,
    b_init=jax.nn.initializers.normal(0.1),
)
X = jax.random.normal(jax.random.key(1), (BATCH, 5))
Y = jax.random.normal(jax.random.key(2), (BATCH, 3))
PARAMS = ll.backprop(NETWORK, ll.squared_error).init(KEY)


def with_weights_as_feedback(params: Any, of: Callable[[Any], Any] = lambda w: w) -> Any:
    return (params[0], *({**weights, "feedback": of(weights["w"])} for weights in params[1:]))


def gradient(rule: ll.Rule, params: Any, x: Any = X, y: Any = Y) -> Any:
    """Loss and gradients of the forward weights."""
    loss, grads = jax.jit(rule.value_and_grad, compiler_options=QUICK)(KEY, params, x, y)
    return loss, without_feedback(grads)


def mean_loss(network: ll.Network, params: Any, x: Any, y: Any) -> Any:
    return jnp.mean(ll.squared_error(network.apply(params, x), y))


# --- identities with backprop


@pytest.mark.parametrize("compile", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("factory", [ll.backprop, on_model(ll.backprop)], ids=["network", "model"])
def test_backprop_is_the_gradient_to_the_last_bit(factory: Any, compile: Callable[..., Any]) -> None:
    rule = factory(NETWORK, ll.squared_error)
    exact = compile(jax.value_and_grad(partial(mean_loss, NETWORK)))(PARAMS, X, Y)
    assert_same(compile(rule.value_and_grad)(KEY, PARAMS, X, Y), exact)


@pytest.mark.parametrize(
    ("factory", "of"),
    [
        (ll.feedback_alignment, lambda w: w),
        (partial(ll.kolen_pollack, decay=0.0), lambda w: w),
        (partial(ll.sign_symmetry, magnitude="fixed"), jnp.abs),
        (partial(ll.sign_symmetry, magnitude="fixed"), lambda w: -jnp.abs(w)),
    ],
    ids=["fa", "kp", "frsf", "frsf-sign-of-feedback-is-ignored"],
)
@pytest.mark.parametrize("scale", ["gradient", "tutorial"])
def test_feedback_equal_to_the_weights_is_backprop_to_the_last_bit(
    factory: Any, of: Callable[[Any], Any], scale: str
) -> None:
    rule = factory(NETWORK, ll.squared_error, scale=scale)
    exact = gradient(ll.backprop(NETWORK, ll.squared_error, scale=scale), PARAMS)
    assert_same(gradient(rule, with_weights_as_feedback(PARAMS, of)), exact)
    assert differs(gradient(rule, with_weights_as_feedback(PARAMS, lambda w: 0.5 * of(w))), exact)


def test_feedback_equal_to_the_weights_is_backprop_on_a_model() -> None:
    rule = ll.feedback_alignment(as_model(NETWORK), ll.squared_error)
    state = rule.init(KEY, PARAMS, X)
    exact = gradient(ll.backprop(NETWORK, ll.squared_error), PARAMS)

    @partial(jax.jit, compiler_options=QUICK)
    def aligned(params: Any, feedback: Any, x: Any, y: Any) -> Any:
        return rule.value_and_grad(KEY, params, state._replace(feedback=feedback), x, y)[:2]

    assert_same(aligned(PARAMS, PARAMS, X, Y), exact)
    assert differs(aligned(PARAMS, jax.tree.map(lambda w: 0.5 * w, PARAMS), X, Y), exact)


def test_direct_feedback_of_the_output_weights_on_a_model() -> None:
    network = ll.mlp((5, 7, 3), activation=jnp.tanh, output_activation=jax.nn.sigmoid)
    params = network.init(KEY)
    exact = gradient(ll.backprop(network, ll.squared_error), params)
    # The output is behind its activation: B passes the error of the output, w that of its pre-activation.
    read_out = ll.mlp((5, 7, 3), activation=jnp.tanh)

    def loss(z: Any, y: Any) -> Any:
        return ll.squared_error(jax.nn.sigmoid(z), y)

    rule = ll.direct_feedback_alignment(as_model(read_out), loss)
    state = rule.init(KEY, params, X)
    ((name, _),) = state.feedback.items()
    for factor in (1, 2):
        feedback = {name: factor * params[1]["w"]}
        found = rule.value_and_grad(KEY, params, state._replace(feedback=feedback), X, Y)[:2]
        if factor == 1:
            assert_close(found, exact, ulps=64)  # example by example: sums in another order
        else:
            assert_close(found[1][0], jax.tree.map(lambda g: 2 * g, exact[1][0]), ulps=64)


def test_direct_feedback_of_the_output_weights_is_backprop_with_one_hidden_layer() -> None:
    network = ll.mlp((5, 7, 3), activation=jnp.tanh, output_activation=jax.nn.sigmoid)
    hidden, output = ll.backprop(network, ll.squared_error).init(KEY)
    exact = gradient(ll.backprop(network, ll.squared_error), (hidden, output))
    rule = ll.direct_feedback_alignment(network, ll.squared_error)
    assert_same(gradient(rule, ({**hidden, "feedback": output["w"]}, output)), exact)
    assert differs(gradient(rule, ({**hidden, "feedback": 2 * output["w"]}, output)), exact)


def test_with_feedback_in_a_loss_of_the_users_own() -> None:
    product = ll.with_feedback(lambda w, x: x @ w)
    w1, w2 = jax.random.normal(KEY, (5, 6)), jax.random.normal(KEY, (6, 3))

    def aligned(w1: Any, w2: Any, feedback: Any) -> Any:
        return jnp.sum((product(w2, feedback, jnp.tanh(X @ w1)) - Y) ** 2)

    def plain(w1: Any, w2: Any) -> Any:
        return jnp.sum((jnp.tanh(X @ w1) @ w2 - Y) ** 2)

    exact = jax.grad(plain, (0, 1))(w1, w2)
    of_w1, of_w2, of_feedback = jax.grad(aligned, (0, 1, 2))(w1, w2, w2)
    assert_same((of_w1, of_w2), exact)
    assert_same(of_feedback, jnp.zeros_like(w2))
    of_w1, of_w2, _ = jax.grad(aligned, (0, 1, 2))(w1, w2, -w2)
    assert_same((of_w1, of_w2), (-exact[0], exact[1]))


def convolve(w: jax.Array, x: jax.Array) -> jax.Array:
    """`w [height, width, in, out]`, `x [batch, height, width, in]`, stride 2."""
    return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_with_feedback_on_a_convolution() -> None:
    x = jax.random.normal(jax.random.key(3), (2, 6, 6, 3))
    w, other, delta = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in ((4, (3, 3, 3, 4)), (5, (3, 3, 3, 4)), (6, (2, 3, 3, 4)))
    )
    z, plain = jax.vjp(convolve, w, x)
    for feedback in (w, other):
        aligned_z, aligned = jax.vjp(ll.with_feedback(convolve), w, feedback, x)
        dw, dfeedback, dx = aligned(delta)
        assert_same(aligned_z, z)
        assert_same(dw, plain(delta)[0])
        assert_same(dfeedback, jnp.zeros_like(w))
        assert_same(dx, jax.vjp(partial(convolve, feedback), x)[1](delta)[0])
    assert_same(ll.with_feedback(convolve)(w, w, x), z)


def convolutional_network() -> ll.Network:
    init = jax.nn.initializers.normal(0.3)

    def convolution(channels_in: int, channels_out: int, activation: Callable[..., Any]) -> ll.Layer:
        shape = (3, 3, channels_in, channels_out)

        def weights(key: Any) -> Any:
            return {"w": init(key, shape), "b": jnp.zeros(channels_out)}

        return ll.Layer(weights, convolve, activation)

    def flat(z: jax.Array) -> jax.Array:
        return jnp.tanh(z).reshape(z.shape[0], -1)

    layers = (convolution(2, 3, jnp.tanh), convolution(3, 2, flat), ll.dense(8, 3))
    return ll.Network(layers, (8, 8, 2))


def test_rules_on_a_convolutional_network() -> None:
    network = convolutional_network()
    x = jax.random.normal(jax.random.key(3), (BATCH, 8, 8, 2))
    exact = ll.backprop(network, ll.squared_error)
    params = exact.init(KEY)
    reference = gradient(exact, params, x)
    assert_close(
        reference, jax.jit(jax.value_and_grad(partial(mean_loss, network)))(params, x, Y), ulps=64
    )  # the products are the same, their order of summation is the compiler's
    aligned = ll.feedback_alignment(network, ll.squared_error)
    assert_same(gradient(aligned, with_weights_as_feedback(params), x), reference)
    direct = ll.direct_feedback_alignment(network, ll.squared_error)
    output = gradient(direct, direct.init(KEY), x)[1][-1]
    assert_same(output, reference[1][-1])


def test_learned_feedback_receives_the_cotangent_of_the_weights() -> None:
    w, feedback = (jax.random.normal(jax.random.key(i), (5, 3)) for i in range(2))
    _, transpose = jax.vjp(ll.with_feedback(lambda w, x: x @ w, learn=True), w, feedback, X)
    dw, dfeedback, dx = transpose(Y)
    assert_same(dfeedback, dw)
    assert_same((dw, dx), (jax.vjp(lambda w: X @ w, w)[1](Y)[0], jax.vjp(lambda x: x @ feedback, X)[1](Y)[0]))


@pytest.mark.usefixtures("x64")
def test_a_gradient_through_a_feedback_op_is_not_the_gradient() -> None:
    product = ll.with_feedback(lambda w, x: x @ w)
    w1, w2, feedback, direction = (
        jax.random.normal(jax.random.key(i), shape, jnp.float64)
        for i, shape in enumerate([(5, 6), (6, 3), (6, 3), (5, 6)])
    )
    x, y = jnp.asarray(X, jnp.float64), jnp.asarray(Y, jnp.float64)

    def aligned(w1: Any) -> Any:
        return jnp.sum((product(w2, feedback, jnp.tanh(x @ w1)) - y) ** 2)

    def plain(w1: Any) -> Any:
        return jnp.sum((jnp.tanh(x @ w1) @ w2 - y) ** 2)

    assert aligned(w1) == plain(w1)
    step = 1e-6
    slope = (plain(w1 + step * direction) - plain(w1 - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(plain)(w1), direction), slope, rtol=1e-7)
    assert abs(jnp.vdot(jax.grad(aligned)(w1), direction) - slope) > 0.1 * abs(slope)


# --- Kolen-Pollack


def train(rule: ll.Rule, optimizer: Any, params: Any, num_steps: int) -> Any:
    """Params after every step, on fresh random batches, with a leading axis of steps."""

    def step(carry: Any, key: Any) -> Any:
        params, state = carry
        x_key, y_key, rule_key = jax.random.split(key, 3)
        dtype = params[0]["w"].dtype
        x, y = jax.random.normal(x_key, X.shape, dtype), jax.random.normal(y_key, Y.shape, dtype)
        _, grads = rule.value_and_grad(rule_key, params, x, y)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @partial(jax.jit, compiler_options=QUICK)
    def run(params: Any) -> Any:
        return lax.scan(step, (params, optimizer.init(params)), jax.random.split(KEY, num_steps))[1]

    return run(params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("scale", ["gradient", "tutorial"])
def test_kolen_pollack_difference_shrinks_by_decay_alone(momentum: float | None, scale: str) -> None:
    eta, decay, num_steps = 0.05, 0.4, 6
    rule = ll.kolen_pollack(NETWORK, ll.squared_error, decay=decay, scale=scale)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), rule.init(KEY))
    path = train(rule, optax.sgd(eta, momentum), start, num_steps)
    for i in (1, 2):
        difference, velocity = start[i]["w"] - start[i]["feedback"], 0.0
        assert float(jnp.abs(difference).max()) > 0.1
        for step in range(num_steps):
            velocity = (momentum or 0.0) * velocity + decay * difference
            difference = difference - eta * velocity
            if momentum is None:
                shrunk = (1 - eta * decay) ** (step + 1) * (start[i]["w"] - start[i]["feedback"])
                np.testing.assert_allclose(difference, shrunk, rtol=0, atol=1e-14)
            np.testing.assert_allclose(
                path[i]["w"][step] - path[i]["feedback"][step], difference, rtol=0, atol=1e-13
            )
    assert "feedback" not in path[0]


def test_kolen_pollack_decays_weights_and_on_request_biases_of_layers_with_feedback() -> None:
    decay, init = 0.3, ll.kolen_pollack(NETWORK, ll.squared_error).init(KEY)

    def grads(**options: Any) -> Any:
        return ll.kolen_pollack(NETWORK, ll.squared_error, **options).value_and_grad(KEY, init, X, Y)[1]

    data, decayed, with_bias = grads(decay=0.0), grads(decay=decay), grads(decay=decay, decay_bias=True)
    assert_same(decayed[0], data[0])
    assert_same(with_bias[0], data[0])
    for i in (1, 2):
        assert_same(data[i]["feedback"], data[i]["w"])
        for name in ("w", "feedback"):
            assert_same(decayed[i][name], data[i][name] + decay * init[i][name])
            assert_same(with_bias[i][name], decayed[i][name])
        assert_same(decayed[i]["b"], data[i]["b"])
        assert_same(with_bias[i]["b"], data[i]["b"] + decay * init[i]["b"])


# --- feedback weights and optimisers


def with_weight_decay(mask: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(0.1, mask=mask), optax.sgd(0.1))


@pytest.mark.parametrize(
    "optimizer",
    [
        with_weight_decay(ll.forward_mask),
        optax.masked(with_weight_decay(None), ll.forward_mask),
        optax.adamw(0.1, weight_decay=0.1, mask=ll.forward_mask),
        optax.adam(0.1),
        optax.chain(ll.clip_by_forward_norm(1e-3), optax.sgd(0.1, momentum=0.9)),
    ],
    ids=["add_decayed_weights", "masked", "adamw", "adam", "clip"],
)
@pytest.mark.parametrize(
    "factory",
    [ll.feedback_alignment, ll.direct_feedback_alignment, partial(ll.sign_symmetry, magnitude="fixed")],
    ids=["fa", "dfa", "frsf"],
)
def test_optimisers_leave_fixed_feedback_alone(factory: Any, optimizer: Any) -> None:
    rule = factory(NETWORK, ll.squared_error)
    start = rule.init(KEY)
    path = train(rule, optimizer, start, 3)
    for before, after in zip(start, path, strict=True):
        assert differs(before["w"], after["w"][-1])
        if "feedback" in before:
            assert_same(np.stack([before["feedback"]] * 3), after["feedback"])


def test_unmasked_weight_decay_would_shrink_the_feedback() -> None:
    rule = ll.feedback_alignment(NETWORK, ll.squared_error)
    start = rule.init(KEY)
    path = train(rule, with_weight_decay(None), start, 1)
    assert_close(path[1]["feedback"][0], 0.99 * start[1]["feedback"], ulps=2)


def test_clipping_by_the_forward_norm() -> None:
    rule = ll.kolen_pollack(NETWORK, ll.squared_error, decay=0.0)
    clip = ll.clip_by_forward_norm(0.01)
    _, grads = rule.value_and_grad(KEY, rule.init(KEY), X, Y)
    updates: Any = clip.update(grads, clip.init(grads))[0]
    assert_close(optax.tree.norm(without_feedback(updates)), jnp.asarray(0.01), ulps=16)
    for layer in updates[1:]:
        assert_same(layer["feedback"], layer["w"])
    larger: Any = tuple({k: 100 * v if k == "feedback" else v for k, v in layer.items()} for layer in grads)
    assert_same(without_feedback(clip.update(larger, clip.init(larger))[0]), without_feedback(updates))
    loose = ll.clip_by_forward_norm(1e3)
    assert_same(loose.update(grads, loose.init(grads))[0], grads)


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


NAMES = ["wp", "wp-central", "wp-3", "np", "np-tutorial", "np-activity", "np-antithetic", "np-layerwise"]


ON_MODELS = ["wp", "wp-central", "wp-3", "np", "np-activity", "np-antithetic", "np-layerwise"]


@pytest.mark.parametrize(
    ("name", "activation", "registry"),
    [(name, opaque, RULES) for name in NAMES]
    + [(name, iterated, RULES) for name in NAMES[:3]]
    + [(name, opaque, MODEL_RULES) for name in ON_MODELS]
    + [(name, iterated, MODEL_RULES) for name in ON_MODELS[:3]],
)
def test_perturbation_never_calls_autodiff(
    name: str, activation: Callable[..., Any], registry: dict[str, Any]
) -> None:
    network = ll.mlp((5, 4, 3), activation=activation)
    factory = RULES[name] if registry is RULES else on_model(MODEL_RULES[name])
    rule = factory(network, ll.squared_error)
    params = rule.init(KEY)
    loss, grads = jax.jit(rule.value_and_grad, compiler_options=QUICK)(KEY, params, X, Y)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))
    assert_close(loss, mean_loss(network, params, X, Y), ulps=8)
    with pytest.raises((AssertionError, ValueError), match=r"autodiff was called|Pure callbacks|while_loop"):
        jax.grad(partial(mean_loss, network))(params, X, Y)


@pytest.mark.parametrize(
    "factory",
    [
        partial(ll.weight_perturbation, sigma=0.1),
        partial(ll.weight_perturbation, sigma=0.1, difference="central"),
        partial(ll.node_perturbation, sigma=0.1),
        ll.forward_gradient,
        partial(ll.forward_gradient, perturb="activities"),
        partial(on_model(ll.weight_perturbation), sigma=0.1),
        partial(on_model(ll.node_perturbation), sigma=0.1),
    ],
    ids=["wp", "wp-central", "np", "fg-weights", "fg-activities", "wp-model", "np-model"],
)
def test_the_mean_of_the_same_draw_is_that_draw(factory: Any) -> None:
    def same(key: Any, like: Any) -> Any:
        def draw(leaf: Any) -> Any:
            return jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

        return jax.tree.map(draw, like)

    one, three = (factory(NETWORK, ll.squared_error, noise=same, num_samples=k) for k in (1, 3))
    assert_close(gradient(three, PARAMS), gradient(one, PARAMS), ulps=640)  # / sigma, as in the contract


def test_spsa_never_calls_autodiff() -> None:
    estimate = ll.estimators.spsa(lambda w: jnp.sum(opaque(w)), perturbation=lambda count: 0.1)
    _, grads = estimate(KEY, jnp.ones(3), count=0)
    assert bool(jnp.all(grads != 0))


def test_forward_gradient_refuses_feedback_ops() -> None:
    product = ll.with_feedback(lambda w, x: x @ w)
    estimate = ll.estimators.forward_gradient(lambda w: jnp.sum(product(w, w, X) ** 2))
    with pytest.raises(TypeError, match=r"forward-mode differentiation, which cannot pass.*with_feedback"):
        estimate(KEY, jnp.ones((5, 3)))
    layer = ll.dense(5, 3)._replace(linear=lambda w, x: product(w, w, x))
    network = ll.Network((layer,), (5,))
    for perturb in ("weights", "activities"):
        rule = ll.forward_gradient(network, ll.squared_error, perturb=perturb)
        if perturb == "weights":
            with pytest.raises(TypeError, match="cannot pass"):
                rule.value_and_grad(KEY, rule.init(KEY), X, Y)
        else:  # taps come after the product of the last layer: nothing to pass
            rule.value_and_grad(KEY, rule.init(KEY), X, Y)
    deep = ll.Network((ll.dense(5, 5), layer), (5,))
    rule = ll.forward_gradient(deep, ll.squared_error, perturb="activities")
    with pytest.raises(TypeError, match="cannot pass"):
        rule.value_and_grad(KEY, rule.init(KEY), X, Y)


# --- every rule


@pytest.mark.parametrize("name", RULES_WITH_SCALE)
def test_tutorial_scale_is_half_the_batch_times_the_gradient(name: str) -> None:
    # With 8 examples the weights 1/2 and 1/8 are powers of two: no rounding tells the two apart.
    factory = RULES_WITH_SCALE[name]
    params = factory(NETWORK, ll.squared_error).init(KEY)
    compile = partial(jax.jit, compiler_options=QUICK)
    tutorial = factory(NETWORK, ll.squared_error, scale="tutorial")
    loss, mean = compile(factory(NETWORK, ll.squared_error).value_and_grad)(KEY, params, X, Y)
    same, total = compile(tutorial.value_and_grad)(KEY, params, X, Y)
    assert_same(total, jax.tree.map(lambda g: (BATCH / 2) * g, mean))
    assert_same(same, loss)


def test_the_same_key_gives_the_same_network_under_every_rule() -> None:
    for name, factory in RULES.items():
        params = factory(NETWORK, ll.squared_error).init(KEY)
        assert_same(without_feedback(params), PARAMS)
        for weights in params[1:] if name != "dfa" else ():
            assert "feedback" not in weights or differs(weights["feedback"], weights["w"])


SIZES = (31, 37, 41, 43)  # batch, inputs, hidden units, outputs: primes, so that no product is met by chance


def largest_array(function: Callable[..., Any], *args: Any) -> int:
    """Number of elements of the largest array in the compiled program, inside fused loops too."""
    text = jax.jit(function).lower(*args).compile(QUICK).as_text()
    assert text is not None
    shapes = re.findall(r"\b(?:pred|(?:bf|f|s|u|c)\d+)\[([\d,]*)\]", text)
    assert len(shapes) > 10
    return max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)


@pytest.mark.parametrize("name", RULES)
def test_no_array_of_batch_times_weights(name: str) -> None:
    batch, *widths = SIZES
    network = ll.mlp(widths, activation=jnp.tanh)
    rule = RULES[name](network, ll.squared_error)
    params = jax.eval_shape(rule.init, KEY)
    x, y = (jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (widths[0], widths[-1]))

    def function(*args: Any) -> Any:
        if rule.signals is None:  # their moments are streamed
            return rule.value_and_grad(*args)
        moments = metrics.example_moments(network, rule, *args)
        return rule.value_and_grad(*args), (moments.mean, moments.variance, moments.distances)

    assert largest_array(function, KEY, params, x, y) < batch * widths[0] * widths[1]


def test_the_search_for_large_arrays_finds_them() -> None:
    batch, *widths = SIZES
    network = ll.mlp(widths, activation=jnp.tanh)
    params = jax.eval_shape(network.init, KEY)
    x, y = (jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (widths[0], widths[-1]))

    def per_example(params: Any, x: Any, y: Any) -> Any:
        grads = jax.vmap(lambda x, y: jax.grad(partial(mean_loss, network))(params, x[None], y[None]))(x, y)
        return jax.tree.map(lambda g: jnp.var(g, axis=0), grads)

    assert largest_array(per_example, params, x, y) >= batch * widths[0] * widths[1]


@pytest.mark.parametrize("name", ["kp-tutorial", "np-tutorial"])
def test_measuring_has_no_side_effect(name: str) -> None:
    rule = RULES[name](NETWORK, ll.squared_error)
    data = ll.data.Splits(*[ll.data.Dataset(X, Y)] * 3)

    def measure(key: Any, params: Any, data: Any) -> Any:
        x, y = data.train
        reference = ll.backprop(NETWORK, ll.squared_error).value_and_grad(key, without_feedback(params), x, y)
        of_examples = metrics.example_moments(NETWORK, rule, key, params, x, y)
        of_draws = metrics.draw_moments(rule, key, params, x, y, reference[1], 4)
        return metrics.snr(of_examples).total, metrics.bias_variance(of_draws).squared_bias

    def run(**options: Any) -> Any:
        train = ll.make_train(rule, optax.sgd(0.01), num_updates=4, batch_size=4, every=2, **options)
        return jax.jit(train, compiler_options=QUICK)(KEY, data)

    measured, plain = run(evaluate=measure), run()
    assert jax.tree.leaves(measured.evaluations) and not jax.tree.leaves(plain.evaluations)
    # two programs, two orders of rounding; a decay by measuring would be a million times larger
    assert_close((measured.losses, measured.state), (plain.losses, plain.state), ulps=64)
