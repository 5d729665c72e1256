"""The networks to start from, beside JAX's own operations and loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lax_learning as ll

KEY = jax.random.key(0)
UNIFORM = jax.nn.initializers.uniform(1.0)


@pytest.mark.parametrize(
    ("kernel", "stride", "pool", "padding"),
    [(3, 1, 2, "SAME"), (2, 3, 1, "VALID"), ((4, 1), (2, 1), 1, "SAME")],
)
def test_convnet_is_a_row_of_convolutions(kernel, stride, pool, padding, x64):
    model = ll.convnet(
        (9, 11, 2), (3, 4), (5, 2), kernel=kernel, stride=stride, pool=pool, padding=padding,
        activation=jnp.tanh, w_init=UNIFORM, b_init=UNIFORM, dtype=jnp.float64,
    )  # fmt: skip
    params, x = model.init(KEY), jax.random.normal(KEY, (3, 9, 11, 2), jnp.float64)
    a = x
    for i, weights in enumerate(params[:2]):
        step = stride[i] if isinstance(stride, tuple) else stride
        z = lax.conv_general_dilated(
            a, weights["w"], (step, step), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        a = jnp.tanh(z + weights["b"])
        window = (1, pool, pool, 1)
        a = lax.reduce_window(a, -jnp.inf, lax.max, window, window, "VALID")
    hidden = jnp.tanh(a.reshape(3, -1) @ params[2]["w"] + params[2]["b"])
    expected = hidden @ params[3]["w"] + params[3]["b"]
    # Sums of up to 200 products in another order.
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-12, atol=1e-12)


def test_rnn_is_a_loop(x64):
    model = ll.rnn((2, 4, 3, 5), outputs="every", w_init=UNIFORM, recurrent_init=UNIFORM, dtype=jnp.float64)
    params, x = model.init(KEY), jax.random.normal(KEY, (3, 6, 2), jnp.float64)
    steps = list(np.moveaxis(np.asarray(x), 1, 0))
    for weights in params[:2]:
        w, u, b = (np.asarray(weights[name]) for name in ("w", "u", "b"))
        h = np.zeros((3, len(u)))
        for t, given in enumerate(steps):
            h = steps[t] = np.tanh(given @ w + h @ u + b)
    every = np.stack([h @ params[2]["w"] + params[2]["b"] for h in steps], axis=1)
    np.testing.assert_allclose(model.apply(params, x), every, rtol=1e-12, atol=1e-12)
    last = ll.rnn((2, 4, 3, 5), dtype=jnp.float64)
    np.testing.assert_allclose(last.apply(params, x), every[:, -1], rtol=1e-12, atol=1e-12)


def test_mlp_has_an_activation_a_layer(x64):
    model = ll.mlp((3, 4, 5, 2), activation=(jnp.tanh, jax.nn.relu), output_activation=jnp.sin,
                   b_init=None, dtype=jnp.float64)  # fmt: skip
    params, x = model.init(KEY), jax.random.normal(KEY, (6, 3), jnp.float64)
    assert [sorted(weights) for weights in params] == [["w"]] * 3
    a = jnp.sin(jax.nn.relu(jnp.tanh(x @ params[0]["w"]) @ params[1]["w"]) @ params[2]["w"])
    np.testing.assert_allclose(model.apply(params, x), a, rtol=1e-13, atol=1e-13)
