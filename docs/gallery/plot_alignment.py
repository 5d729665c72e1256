"""
Feedback alignment: updates turn towards the gradient
=====================================================

The feedback is fixed and random. During training, the forward weights align with it, and the updates with the
gradient. Kolen-Pollack, whose feedback learns, comes close to the gradient.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist1d(key, sizes=(2000, 0, 500))
model, loss = ll.mlp((40, 64, 64, 10), activation=jnp.tanh), ll.softmax_cross_entropy
exact = ll.backprop(model, loss)
rate = 0.2
rules = {
    "feedback alignment": ll.feedback_alignment(model, loss),
    "direct feedback alignment": ll.direct_feedback_alignment(model, loss),
    "Kolen-Pollack": ll.kolen_pollack(model, loss, decay=0.01, optimizer=optax.sgd(rate)),
}


def angles(rule, key):
    def evaluate(key, params, state, data):
        x, y = data.train.x[:200], data.train.y[:200]
        _, grads, _ = rule.value_and_grad(key, params, state, x, y)
        _, reference, _ = exact.value_and_grad(key, params, (), x, y)
        return ll.metrics.angle_degrees(grads[:-1], reference[:-1])  # not the readout, which is exact

    train = ll.make_train(
        rule, optax.sgd(rate), init=model.init, num_updates=1500, batch_size=50, evaluate=evaluate, every=75
    )
    return train(key, data).evaluations


# %%
# Means over four seeds; bands show minimum and maximum.
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
updates = jnp.arange(0, 1501, 75)
for name, rule in rules.items():
    found = jax.jit(jax.vmap(lambda key, rule=rule: angles(rule, key)))(jax.random.split(key, 4))
    axes.plot(updates, found.mean(axis=0), label=name)
    axes.fill_between(updates, found.min(axis=0), found.max(axis=0), alpha=0.2)
axes.axhline(90, color="0.6", linestyle=":")
axes.set(xlabel="updates", ylabel="angle to the gradient of hidden layers, degrees", ylim=(0, 100))
axes.legend()
plt.show()
