"""The networks to start from, beside JAX's own operations and loops by hand; names of the package."""

import importlib
import pkgutil
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lax_learning as ll
from lax_learning import rules
from tests.compare import slow_but

KEY = jax.random.key(0)
UNIFORM = jax.nn.initializers.uniform(1.0)
ACTIVATIONS = (jnp.tanh, jax.nn.sigmoid, jnp.sin)
OPTIONS: Any = {"w_init": UNIFORM, "b_init": UNIFORM, "output_activation": jnp.sin, "dtype": jnp.float64}


@pytest.mark.parametrize(
    ("kernel", "stride", "pool", "padding"),
    slow_but([(3, 1, 2, "SAME")], [(3, 1, 2, "SAME"), (2, 3, 1, "VALID"), ((4, 1), (2, 1), 1, "SAME")]),
)
def test_convnet_is_a_row_of_convolutions(kernel, stride, pool, padding, x64):
    model = ll.convnet(
        (9, 11, 2), (3, 4), (5, 2), kernel=kernel, stride=stride, pool=pool, padding=padding,
        activation=ACTIVATIONS, **OPTIONS,
    )  # fmt: skip

    @jax.jit
    def both(params, x):
        a = x
        for i, weights in enumerate(params[:2]):
            step = stride[i] if isinstance(stride, tuple) else stride
            z = lax.conv_general_dilated(
                a, weights["w"], (step, step), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            a, window = ACTIVATIONS[i](z + weights["b"]), (1, pool, pool, 1)
            a = lax.reduce_window(a, -jnp.inf, lax.max, window, window, "VALID")
        hidden = ACTIVATIONS[2](a.reshape(3, -1) @ params[2]["w"] + params[2]["b"])
        return model.apply(params, x), jnp.sin(hidden @ params[3]["w"] + params[3]["b"])

    x = np.random.default_rng(0).normal(size=(3, 9, 11, 2))
    # Sums of up to 200 products in another order.
    np.testing.assert_allclose(*both(jax.jit(model.init)(KEY), x), rtol=1e-12, atol=1e-12)


def test_rnn_is_a_loop(x64):
    model = ll.rnn((2, 4, 3, 5), outputs="every", recurrent_init=UNIFORM, **OPTIONS)
    params, x = jax.jit(model.init)(KEY), np.random.default_rng(0).normal(size=(3, 6, 2))
    steps = list(np.moveaxis(x, 1, 0))
    for weights in params[:2]:
        w, u, b = (np.asarray(weights[name]) for name in ("w", "u", "b"))
        h = np.zeros((3, len(u)))
        for t, given in enumerate(steps):
            h = steps[t] = np.tanh(given @ w + h @ u + b)
    every = np.sin(np.stack([h @ params[2]["w"] + params[2]["b"] for h in steps], axis=1))
    last = ll.rnn((2, 4, 3, 5), **OPTIONS)
    found, of_last = jax.jit(lambda params: (model.apply(params, x), last.apply(params, x)))(params)
    np.testing.assert_allclose(found, every, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(of_last, every[:, -1], rtol=1e-12, atol=1e-12)


def test_mlp_has_an_activation_a_layer(x64):
    model = ll.mlp((3, 4, 5, 2), activation=(jnp.tanh, jax.nn.relu), **{**OPTIONS, "b_init": None})
    params, x = model.init(KEY), np.random.default_rng(0).normal(size=(6, 3))
    assert [sorted(weights) for weights in params] == [["w"]] * 3
    hidden = np.maximum(np.tanh(x @ params[0]["w"]) @ params[1]["w"], 0)
    np.testing.assert_allclose(
        model.apply(params, x), np.sin(hidden @ params[2]["w"]), rtol=1e-13, atol=1e-13
    )


def test_no_module_is_hidden_by_what_its_package_calls_the_same():
    packages = [ll, *(importlib.import_module(m.name)
                      for m in pkgutil.walk_packages(ll.__path__, "lax_learning.") if m.ispkg)]  # fmt: skip
    assert len(packages) > 8
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__):
            assert isinstance(getattr(package, module.name, sys), types.ModuleType), module.name


def test_flat_names_are_few():
    flat = [name for name in ll.__all__ if not isinstance(getattr(ll, name), types.ModuleType)]
    assert len(flat) == len(set(flat)) and len(set(flat).difference(rules.__all__)) <= 21
