"""
Local losses: the variance of a block
=====================================

Forward gradients on activities are computed from the loss at the head of their own block. The more blocks the
same layers are divided into, the fewer units share a loss, and the closer a single gradient estimate is to
the gradient of its own loss.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist1d(key, sizes=(500, 0, 100))
x, y = data.train.x[:50], data.train.y[:50]
depth, width = 8, 32


def body(layers, a):
    for w in layers:
        a = jnp.tanh(a @ w)
    return a


def head(w, a):
    return a @ w


def initial(key, num_blocks):
    """Returns params of blocks of equal depth, each with a head."""
    keys = iter(jax.random.split(key, depth + num_blocks))
    sizes = [40, *[width] * depth]
    layers = [jax.random.normal(next(keys), pair) / pair[0] ** 0.5 for pair in pairwise(sizes)]
    each = depth // num_blocks
    heads = [jax.random.normal(next(keys), (width, 10)) / width**0.5 for _ in range(num_blocks)]
    return [(layers[i * each : (i + 1) * each], heads[i]) for i in range(num_blocks)]


def cosine(key, num_blocks):
    params = initial(key, num_blocks)
    blocks = [(body, head)] * num_blocks
    loss = ll.softmax_cross_entropy
    noisy = ll.local_losses(lambda model: ll.forward_gradient(model, loss, perturb="activities"), blocks)
    exact = ll.local_losses(lambda model: ll.backprop(model, loss), blocks)
    _, grads, _ = noisy.value_and_grad(key, params, noisy.init(key, params, x), x, y)
    _, reference, _ = exact.value_and_grad(key, params, exact.init(key, params, x), x, y)
    bodies = [[block[0] for block in tree] for tree in (grads, reference)]
    return ll.metrics.cosine_similarity(*bodies)


# %%
# Eight layers of 32 units, divided into 1 to 8 blocks.
counts = (1, 2, 4, 8)
keys = jax.random.split(key, 16)
found = jnp.stack([jax.jit(jax.vmap(lambda key, n=n: cosine(key, n)))(keys) for n in counts])
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
axes.errorbar(counts, found.mean(axis=1), found.std(axis=1), marker="o", capsize=4)
axes.set(xscale="log", xlabel="blocks", ylabel="cosine to the gradient of the local losses")
axes.set_xticks(counts, [str(n) for n in counts])
axes.minorticks_off()
axes.set_ylim(bottom=0)
plt.show()
