"""
Guided gradient: more guesses are better
========================================

The guided gradient projects the gradient onto the span of K guesses, with one forward-mode pass per guess.
Random guesses reach a cosine of about the square root of K / D. Guesses by feedback alignment, each with its
own feedback, do better.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist1d(key, sizes=(500, 0, 100))
x, y = data.train.x[:100], data.train.y[:100]
model, loss = ll.mlp((40, 32, 32, 10), activation=jnp.tanh), ll.softmax_cross_entropy
exact = ll.backprop(model, loss)
guesses = {
    "forward gradient": ll.forward_gradient(model, loss),
    "feedback alignment": ll.feedback_alignment(model, loss),
}
counts = (1, 2, 4, 8)


def cosine(rule, key):
    params = model.init(key)
    _, grads, _ = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)
    _, reference, _ = exact.value_and_grad(key, params, (), x, y)
    return ll.metrics.cosine_similarity(grads, reference)


# %%
# Dotted: the square root of K / D, for the D parameters of the network.
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, guess in guesses.items():
    sizes = []
    for count in counts:
        rule = ll.guided_gradient(model, loss, [guess] * count)
        found = jax.jit(jax.vmap(lambda key, rule=rule: cosine(rule, key)))(jax.random.split(key, 16))
        sizes.append(jnp.sqrt((found**2).mean()))
    axes.plot(counts, sizes, marker="o", label=name)
size = sum(leaf.size for leaf in jax.tree.leaves(model.init(key)))
axes.plot(counts, [(count / size) ** 0.5 for count in counts], ":", color="0.4")
axes.set(
    xscale="log", yscale="log", xlabel="guesses K", ylabel="cosine to the gradient, r.m.s.", ylim=(0.01, 1.1)
)
axes.set_xticks(counts, [str(count) for count in counts])
axes.minorticks_off()
axes.legend()
plt.show()
