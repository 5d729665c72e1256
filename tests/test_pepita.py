"""PEPITA against its equations written out; it meets the models of other libraries with all rules."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lax_learning as ll
from tests.compare import normal, update
from tests.refusal import refusals

KEY = jax.random.key(8)


def test_gradients_by_hand(x64: None) -> None:
    sizes, batch = (5, 7, 6, 3), 4
    params = [
        {"w": normal(i, m, n), "b": normal(10 + i, n)} for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]
    x, y = normal(3, batch, sizes[0]), jnp.eye(3)[jnp.arange(batch) % 3]

    def apply(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    rule = ll.pepita(ll.Model(apply), ll.softmax_cross_entropy)
    state, loss, grads, _ = update(rule, KEY, params, x, y)
    assert [f.shape for f in state.feedback] == [(3, 5)]
    assert float(jnp.abs(state.feedback[0]).max()) < 0.05 * (6 / 5) ** 0.5

    w, b = ([np.asarray(layer[name]) for layer in params] for name in "wb")

    def passed(x: Any) -> tuple[list[np.ndarray], np.ndarray]:
        a = [x]
        for i in range(2):
            a.append(np.maximum(a[-1] @ w[i] + b[i], 0))
        z = a[-1] @ w[2] + b[2]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return a, p / p.sum(axis=1, keepdims=True) - np.asarray(y)

    first, e = passed(np.asarray(x))
    second, e_after = passed(np.asarray(x) + e @ np.asarray(state.feedback[0]))
    deltas = [first[1] - second[1], first[2] - second[2], e_after]
    for i, delta in enumerate(deltas):
        np.testing.assert_allclose(grads[i]["w"], second[i].T @ delta / batch, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(grads[i]["b"], delta.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss, ll.softmax_cross_entropy(apply(params, x), y).mean(), rtol=1e-12)


def test_activities_in_a_scan_and_sums_of_gates(x64: None) -> None:
    """A leaky unit whose sum is read by two things is compared by its sum, one of a scan by its activity."""
    params = {name: normal(i, 3, 3) for i, name in enumerate("wvu")}

    def gates(p: Any, x: Any) -> Any:
        z = x @ p["w"]
        return jnp.tanh(z) * jax.nn.sigmoid(z)

    def apply(p: Any, x: Any) -> Any:
        gated = gates(p, x) + jnp.cos(x)  # alone, then with the input
        h, _ = jax.lax.scan(lambda h, a: (jnp.sin(h + a @ p["v"]), None), gated, jnp.stack([gated] * 2))
        return h @ p["u"]

    x, y = normal(3, 2, 3), jnp.zeros((2, 3))
    state, _, grads, _ = update(ll.pepita(ll.Model(apply), ll.squared_error), KEY, params, x, y)

    @jax.jit
    def by_hand(p: Any) -> Any:
        after_x = x + 2 * (apply(p, x) - y) @ state.feedback[0]
        alone = [gates(p, at) for at in (x, after_x)]
        gated = [a + jnp.cos(at) for a, at in zip(alone, (x, after_x), strict=True)]
        h, moved = list(gated), jnp.zeros((2, 3))
        for _ in range(2):
            h = [jnp.sin(each + a @ p["v"]) for each, a in zip(h, gated, strict=True)]
            moved += h[0] - h[1]
        return after_x.T @ (alone[0] - alone[1]) / 2, gated[1].T @ moved / 2

    for name, expected in zip("wv", by_hand(params), strict=True):
        np.testing.assert_allclose(grads[name], expected, rtol=1e-9)


OUTPUTS = {
    "masked": lambda p, z, x: jnp.where(x[:, :3] > 0, z, -9.0),
    "scaled": lambda p, z, x: z * jnp.exp(p["scale"]),
    "gated": lambda p, z, x: z * jax.nn.sigmoid(jnp.sin(z) + x[:, :1]),
    "rectified": lambda p, z, x: jax.nn.relu(z) + x[:, :3],
    "in a scan": lambda p, z, x: jax.lax.scan(lambda h, a: (h + a * x[:, :3], None), z, jnp.ones(2))[0],
}


def flattened(p: Any, x: Any) -> Any:
    return jax.nn.relu(x.reshape(-1, 2, 2) @ p["a"]).reshape(len(x), -1)


def outside_of_remat(p: Any, x: Any) -> Any:
    product = jax.checkpoint(lambda x: x.reshape(-1, 2, 2) @ p["a"])
    return jax.nn.relu(product(x)).reshape(len(x), -1)


def test_what_follows_the_last_product_and_changes_of_shape(x64: None) -> None:
    """The read-out gets its true error on the second pass, hidden units that of their activities."""
    params = {"a": normal(0, 2, 2), "b": normal(1, 4, 3), "scale": normal(2, 3)}
    x, y = normal(3, 5, 4), jnp.ones((5, 3))
    models = {name: (of, flattened) for name, of in OUTPUTS.items()}
    models["outside of remat"] = OUTPUTS["masked"], outside_of_remat

    @jax.jit
    def run(params: Any) -> Any:
        found = {}
        for name, (of, hidden) in models.items():

            def apply(p: Any, x: Any, of: Any = of, hidden: Any = hidden) -> Any:
                return of(p, hidden(p, x) @ p["b"], x)

            rule = ll.pepita(ll.Model(apply), ll.squared_error)
            state = rule.init(KEY, params, x)
            grads = rule.value_and_grad(KEY, params, state, x, y)[1]
            after = x + 2 * (apply(params, x) - y) @ state.feedback[0]
            exact = jax.grad(lambda p, f=apply, at=after: ll.squared_error(f(p, at), y).mean())(params)
            first, second = (flattened(params, at).reshape(-1, 2, 2) for at in (x, after))
            by_hand = jnp.einsum("npi,npj->ij", after.reshape(-1, 2, 2), first - second) / 5
            found[name] = grads, exact | {"a": by_hand}
        return found

    for name, (grads, expected) in run(params).items():
        for leaf, wanted in expected.items():
            np.testing.assert_allclose(grads[leaf], wanted, rtol=1e-9, err_msg=f"{name}, {leaf}")


test_bad_input = refusals(
    values={
        "^x: expected a floating-point leaf": lambda: ll.pepita(
            ll.Model(lambda w, x: w[x]), ll.squared_error
        ).init(KEY, jnp.ones((4, 2)), jnp.ones(3, int)),
    },
    types={"^feedback_init: ": lambda: ll.pepita(ll.mlp((2, 2)), ll.squared_error, feedback_init=3)},  # pyright: ignore
)
