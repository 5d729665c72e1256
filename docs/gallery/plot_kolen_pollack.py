"""
Kolen-Pollack: weights and feedback converge
============================================

Weights and feedback receive the same updates, and both decay. Under gradient descent with rate
:math:`\\eta`, their difference shrinks by a factor of :math:`1 - \\eta \\lambda` per update, for any data.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.half_space(key, 16)
model = ll.mlp((16, 32, 32, 2), activation=jnp.tanh)
rate, decays = 0.2, jnp.array([0.003, 0.01, 0.03])


def differences(key, decay):
    rule = ll.kolen_pollack(model, ll.softmax_cross_entropy, decay=decay, optimizer=optax.sgd(rate))

    def evaluate(key, params, state, data):
        weights, feedback = params[1]["w"], state.feedback[1]["w"]
        return jnp.linalg.norm(weights - feedback), ll.metrics.cosine_similarity(weights, feedback)

    train = ll.make_train(
        rule, optax.sgd(rate), init=model.init, num_updates=1000, batch_size=50, evaluate=evaluate, every=50
    )
    return train(key, data).evaluations


# %%
# One program runs all decays. Dashed lines show the theory.
distance, cosine = jax.jit(jax.vmap(differences, in_axes=(None, 0)))(key, decays)
updates = jnp.arange(0, 1001, 50)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for decay, d, c in zip(decays, distance, cosine, strict=True):
    (line,) = left.semilogy(updates, d, label=f"decay {decay:g}")
    left.semilogy(
        updates, d[0] * (1 - rate * decay) ** updates, "--", color=line.get_color(), linewidth=3, alpha=0.4
    )
    right.plot(updates, c)
left.set(xlabel="updates", ylabel="|w - feedback|")
left.legend()
right.set(xlabel="updates", ylabel="cosine of w and feedback", ylim=(-0.1, 1.05))
plt.show()
