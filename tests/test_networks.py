"""The networks to start from, beside JAX's own operations and loops by hand; names of the package."""

import importlib
import pkgutil
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lax_learning as ll
from lax_learning import rules

KEY = jax.random.key(0)
UNIFORM = jax.nn.initializers.uniform(1.0)
ACTIVATIONS = (jnp.cos, jax.nn.sigmoid, jnp.tanh)  # the first one's pools are not those of its sums
OPTIONS: Any = {"w_init": UNIFORM, "b_init": UNIFORM, "output_activation": jnp.sin, "dtype": jnp.float64}


def test_convnet_is_a_row_of_convolutions(x64):
    stride, pool, paddings = (1, 2), (2, 1), ("SAME", "VALID")
    options: Any = {"kernel": (3, 2), "stride": stride, "pool": pool, "activation": ACTIVATIONS, **OPTIONS}
    models = [ll.convnet((9, 11, 2), (3, 4), (5, 2), **options | {"padding": each}) for each in paddings]

    def by_hand(params, a, padding):
        for weights, phi, step, size in zip(params, ACTIVATIONS, stride, pool, strict=False):
            z = lax.conv_general_dilated(
                a, weights["w"], (step, step), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            window = (1, size, size, 1)
            a = lax.reduce_window(phi(z + weights["b"]), -jnp.inf, lax.max, window, window, "VALID")
        hidden = ACTIVATIONS[2](a.reshape(3, -1) @ params[2]["w"] + params[2]["b"])
        return jnp.sin(hidden @ params[3]["w"] + params[3]["b"])

    @jax.jit
    def both(key, x):
        starts = [model.init(key) for model in models]
        found = [model.apply(params, x) for model, params in zip(models, starts, strict=True)]
        return found, [by_hand(params, x, padding) for params, padding in zip(starts, paddings, strict=True)]

    for found, expected in zip(*both(KEY, np.random.default_rng(0).normal(size=(3, 9, 11, 2))), strict=True):
        # Sums of up to 200 products in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_rnn_is_a_loop_and_mlp_has_an_activation_for_each_layer(x64):
    every, last = (
        ll.rnn((2, 4, 3, 5), outputs=of, recurrent_init=UNIFORM, **OPTIONS) for of in ("every", "last")
    )
    mlp = ll.mlp((2, 4, 3, 5), activation=(jnp.tanh, jax.nn.relu), **{**OPTIONS, "b_init": None})
    x = np.random.default_rng(0).normal(size=(3, 6, 2))

    @jax.jit
    def run(key):
        params, of_mlp = every.init(key), mlp.init(key)
        return params, of_mlp, every.apply(params, x), last.apply(params, x), mlp.apply(of_mlp, x[:, 0])

    params, of_mlp, *found = run(KEY)
    steps = list(np.moveaxis(x, 1, 0))
    for weights in params[:2]:
        w, u, b = (np.asarray(weights[name]) for name in ("w", "u", "b"))
        h = np.zeros((3, len(u)))
        for t, given in enumerate(steps):
            h = steps[t] = np.tanh(given @ w + h @ u + b)
    outputs = np.sin(np.stack([h @ params[2]["w"] + params[2]["b"] for h in steps], axis=1))
    assert [sorted(weights) for weights in of_mlp] == [["w"]] * 3
    w = [np.asarray(weights["w"]) for weights in of_mlp]
    of_layers = np.sin(np.maximum(np.tanh(x[:, 0] @ w[0]) @ w[1], 0) @ w[2])
    for output, expected in zip(found, (outputs, outputs[:, -1], of_layers), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


def test_no_module_is_hidden_by_what_its_package_calls_the_same_and_flat_names_are_few():
    packages = [ll, *(importlib.import_module(m.name)
                      for m in pkgutil.walk_packages(ll.__path__, "lax_learning.") if m.ispkg)]  # fmt: skip
    assert len(packages) > 8
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__):
            assert isinstance(getattr(package, module.name, sys), types.ModuleType), module.name
    flat = [name for name in ll.__all__ if not isinstance(getattr(ll, name), types.ModuleType)]
    assert len(flat) == len(set(flat)) and len(set(flat).difference(rules.__all__)) <= 21
