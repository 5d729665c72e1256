"""
Weight mirror: feedback learned from noise
==========================================

Noise is sent through each product, and the feedback learns from its correlation with the response. Small
mirror rates are slow and accurate, large ones fast and noisy. The weights learn at the same time.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.half_space(key, 16)
model = ll.mlp((16, 64, 64, 2), activation=jnp.tanh)
betas = jnp.array([0.003, 0.01, 0.1])


def alignment(key, beta):
    rule = ll.weight_mirror(model, ll.softmax_cross_entropy, optimizer=optax.sgd(beta))

    def evaluate(key, params, state, data):
        return ll.metrics.cosine_similarity(params[1]["w"], state.feedback[1]["w"])

    train = ll.make_train(
        rule, optax.sgd(0.1), init=model.init, num_updates=600, batch_size=32, evaluate=evaluate, every=20
    )
    return train(key, data).evaluations


# %%
# One program runs all mirror rates.
cosines = jax.jit(jax.vmap(alignment, in_axes=(None, 0)))(key, betas)
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for beta, cosine in zip(betas, cosines, strict=True):
    axes.plot(jnp.arange(0, 601, 20), cosine, label=f"beta = {beta:g}")
axes.set(xlabel="updates", ylabel="cosine of weights and feedback", ylim=(-0.1, 1.05))
axes.legend()
plt.show()
