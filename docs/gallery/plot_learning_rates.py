"""
A grid of learning rates in one program
=======================================

Learning rates and seeds are traced, so one compiled program trains all combinations side by side;
:func:`lax_learning.grid` names the axes of the results. The best learning rate of a perturbation rule is
about 1 / (1 + V) times that of backprop, where V is the rule's relative variance.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.half_space(key, 16)
model, loss = ll.mlp((16, 32, 2), activation=jnp.tanh), ll.softmax_cross_entropy
rules = {
    "backprop": ll.backprop(model, loss),
    "feedback alignment": ll.feedback_alignment(model, loss),
    "node perturbation": ll.node_perturbation(model, loss, sigma=0.01),
    "weight perturbation": ll.weight_perturbation(model, loss, sigma=0.01),
}
rates = jnp.logspace(-3, 1.5, 13)

# %%
# Four seeds times thirteen rates for each rule.
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, rule in rules.items():

    def run(data, *, seed, rate, rule=rule):
        train = ll.make_train(rule, optax.sgd(rate), init=model.init, num_updates=200, batch_size=100)
        return train(seed, data).losses[-20:].mean()

    found = ll.grid(run)({"seed": jax.random.split(key, 4), "rate": rates}, data).results
    axes.semilogx(rates, found.mean(axis=0), marker="o", label=name)
axes.axhline(jnp.log(2), color="0.6", linestyle=":")
axes.set(xlabel="learning rate", ylabel="loss after 200 updates", ylim=(0, 1.2))
axes.legend()
plt.show()
