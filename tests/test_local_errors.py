"""Local errors are the gradient of the sum of all losses, where what products read counts as fixed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from tests.compare import assert_close, assert_near, normal, squares

X, Y = normal(0, 5, 3), normal(1, 5, 4)
KEY = jax.random.key(0)
SHAPES = {"a": (3, 4), "b": (4,), "c": (4, 4), "d": (4, 4)}


def net(params: Any, x: Any, product: Any) -> Any:
    """Errors pass around the second product, and what the last one reads is an output itself."""
    h = jnp.tanh(product(x, params["a"]) + params["b"])
    h = h + product(jnp.tanh(h), params["c"])
    return {"h": h, "v": product(jnp.tanh(h), params["d"])}


def both(output: Any, y: Any) -> Any:
    return squares(output["h"], y) + squares(output["v"], 2 * y)


def test_gradient_of_the_sum_of_all_losses() -> None:
    rule = ll.local_errors(ll.Model(lambda p, x: net(p, x, jnp.dot)), both, optimizer=optax.sgd(0.1))

    def total(params: Any, feedback: Any) -> Any:
        reads: list[Any] = []

        def product(a: Any, w: Any) -> Any:
            reads.append(a)
            return jax.lax.stop_gradient(a) @ w

        output = net(params, X, product)
        readouts, losses = iter(feedback.values()), [both(output, Y).mean()]
        for a in reads[1:]:  # no error passes to x
            losses.append(both({name: a @ next(readouts) for name in sorted(output)}, Y).mean())
        return sum(losses), losses[0]

    @jax.jit
    def run(params: Any) -> Any:
        state = rule.init(KEY, params, X)
        loss, grads, after = rule.value_and_grad(KEY, params, state, X, Y)
        (of_params, slopes), last = jax.grad(total, (0, 1), has_aux=True)(params, state.feedback)
        moved = jax.tree.map(lambda b, g: b - 0.1 * g, state.feedback, slopes)
        return (loss, grads, after.feedback), (last, of_params, moved)

    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
    assert_close(*run(params), ulps=20)


def test_stacked_layers_have_losses_of_their_own() -> None:
    """Layers under a scan learn as the same layers in a list."""

    def in_scan(params: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["hidden"])
        return h.sum(1) @ params["out"]

    def in_list(params: Any, x: Any) -> Any:
        for w in params["hidden"]:
            x = jnp.tanh(x @ w)
        return x.sum(1) @ params["out"]

    def alike(key: Any, like: Any) -> Any:
        """Readouts that differ between units, but not between layers."""
        return jnp.broadcast_to(normal(5, *like.shape[-2:]), like.shape)

    x, y = normal(2, 5, 7, 4), normal(6, 5, 2)

    @jax.jit
    def run(stacked: Any) -> Any:
        results = []
        for net, params in ((in_scan, stacked), (in_list, {**stacked, "hidden": [*stacked["hidden"]]})):
            rule = ll.local_errors(ll.Model(net), squares, optimizer=optax.sgd(0.1), feedback_init=alike)
            _, grads, after = rule.value_and_grad(KEY, params, rule.init(KEY, params, x), x, y)
            results.append((jnp.stack([*grads["hidden"]]), grads["out"], after.feedback))
        return results

    (*scanned, feedback), (*listed, each) = run({"hidden": normal(3, 3, 4, 4), "out": normal(4, 4, 2)})
    assert_near(scanned, listed)
    assert len(feedback) < len(each) == 3
