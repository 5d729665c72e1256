"""
Learning in the memory of inference
===================================

A step of weight perturbation does not need to store a gradient: the noise is regenerated wherever it is
needed, and the update overwrites the parameters. The temporary memory reported by the compiler shows this for
a stack of layers.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

# sphinx_gallery_start_ignore
jax.config.update("jax_disable_most_optimizations", False)  # the site is built with fewer optimizations
# sphinx_gallery_end_ignore
width, batch = 256, 16
depths = (2, 4, 8, 16)
x = jnp.ones((batch, width))


def loss_fn(layers, x):
    a, _ = jax.lax.scan(lambda a, w: (jnp.tanh(a @ w), None), x, layers)
    return jnp.mean(a**2)


step = ll.estimators.in_place_step(loss_fn, sigma=1e-3, noise="rademacher")
weight_perturbation = ll.estimators.weight_perturbation(loss_fn, sigma=1e-3, difference="central")


def sgd(key, layers, x):
    value, grads = weight_perturbation(key, layers, x)
    return value, layers - 0.1 * grads


def by_backprop(key, layers, x):
    value, grads = jax.value_and_grad(loss_fn)(layers, x)
    return value, layers - 0.1 * grads


def megabytes(function, *arguments, **options):
    compiled = jax.jit(function, donate_argnums=1).lower(*arguments, **options).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


# %%
# Temporary memory, in addition to the parameters, whose buffers are donated.
found = {"in place": [], "weight perturbation, then SGD": [], "backprop, then SGD": []}
for depth in depths:
    key, layers = jax.random.key(0), jnp.ones((depth, width, width)) / width**0.5
    found["in place"].append(megabytes(step, key, layers, x, learning_rate=0.1))
    found["weight perturbation, then SGD"].append(megabytes(sgd, key, layers, x))
    found["backprop, then SGD"].append(megabytes(by_backprop, key, layers, x))
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
parameters = [depth * width**2 * 4 / 1e6 for depth in depths]
axes.plot(parameters, parameters, ":", color="0.6", label="as large as the parameters")
for name, values in found.items():
    axes.plot(parameters, values, marker="o", label=name)
axes.set(xlabel="parameters, MB", ylabel="temporaries, MB", xscale="log", yscale="log")
axes.legend()
plt.show()
# sphinx_gallery_start_ignore
jax.config.update("jax_disable_most_optimizations", True)
# sphinx_gallery_end_ignore
