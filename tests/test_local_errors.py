"""Local errors are the gradient of the sum of the losses at all readouts, each layer's input fixed."""

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from tests.compare import assert_close, assert_near, normal, squares

X, Y = normal(0, 5, 3), normal(1, 5, 2)
KEY = jax.random.key(0)


def test_gradient_of_the_sum_of_local_losses():
    model = ll.mlp((3, 4, 6, 2), activation=jnp.tanh)
    params = model.init(KEY)
    rule = ll.local_errors(model, squares, optimizer=optax.sgd(0.1))
    state = rule.init(KEY, params, X)
    loss, grads, after = jax.jit(rule.value_and_grad)(KEY, params, state, X, Y)

    def total(params, feedback):
        a, losses = X, []
        for layer, readout in zip(params, [*feedback.values(), None], strict=True):
            z = jax.lax.stop_gradient(a) @ layer["w"] + layer["b"]
            a = jnp.tanh(z)
            losses.append(squares(z if readout is None else a @ readout, Y).mean())
        return sum(losses), losses[-1]

    (of_params, of_feedback), last = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, state.feedback)
    assert_close((loss, grads), (last, of_params), ulps=20)
    moved = jax.tree.map(lambda b, g: b - 0.1 * g, state.feedback, of_feedback)
    assert_close(after.feedback, moved, ulps=20)


def test_stacked_layers_have_losses_of_their_own():
    """Layers under a scan learn as the same layers in a list; positions are summed over."""

    def in_scan(params, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["hidden"])
        return h.sum(1) @ params["out"]

    def ones(key, like):
        return jnp.ones(like.shape)

    def in_list(params, x):
        for w in params["hidden"]:
            x = jnp.tanh(x @ w)
        return x.sum(1) @ params["out"]

    x = normal(2, 5, 7, 4)
    stacked = {"hidden": normal(3, 3, 4, 4), "out": normal(4, 4, 2)}
    apart = {**stacked, "hidden": list(stacked["hidden"])}
    results = []
    for net, params in ((in_scan, stacked), (in_list, apart)):
        rule = ll.local_errors(ll.Model(net), squares, optimizer=optax.sgd(0.1), feedback_init=ones)
        _, grads, after = jax.jit(rule.value_and_grad)(KEY, params, rule.init(KEY, params, x), x, Y)
        results.append((grads["hidden"], grads["out"], after.feedback))
    (scanned, out, feedback), (listed, same, each) = results
    assert_near((scanned, out), (jnp.stack(listed), same))
    assert len(feedback) < len(each) == 3
