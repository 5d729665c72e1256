"""
Low-rank noise: many draws in one pass
======================================

With noise :math:`a b^\\top` on each matrix, all draws are batched into products of thin matrices. A draw is
hardly worse than a draw of full noise, and hundreds of draws are cheap. The cosine grows with the number of
draws.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist1d(key, sizes=(500, 0, 100))
x, y = data.train.x[:32], data.train.y[:32]
model, loss = ll.mlp((40, 64, 10), activation=jnp.tanh), ll.softmax_cross_entropy
exact = ll.backprop(model, loss)
counts = (1, 16, 256)


def cosine(key, count, rank):
    rule = ll.weight_perturbation(model, loss, sigma=0.01, difference="central", num_samples=count, rank=rank)
    params = model.init(key)
    _, grads, _ = rule.value_and_grad(key, params, (), x, y)
    _, reference, _ = exact.value_and_grad(key, params, (), x, y)
    return ll.metrics.cosine_similarity(grads, reference)


# %%
# Dashed: the square root of K / (K + D - 1), the theory for full normal noise and D parameters.
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
keys = jax.random.split(key, 8)
for rank in (None, 1):
    found = jnp.stack(
        [jax.jit(jax.vmap(lambda k, c=count, r=rank: cosine(k, c, r)))(keys) for count in counts]
    )
    label = "full" if rank is None else f"rank {rank}"
    axes.errorbar(counts, found.mean(axis=1), found.std(axis=1), marker="o", capsize=3, label=label)
size = sum(leaf.size for leaf in jax.tree.leaves(model.init(key)))
axes.plot(counts, [(k / (k + size - 1)) ** 0.5 for k in counts], "--", color="0.4")
axes.set(xscale="log", yscale="log", xlabel="draws K", ylabel="cosine to the gradient")
axes.legend()
plt.show()
