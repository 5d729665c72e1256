"""
A critic that tells functions from networks
===========================================

A small critic learns to distinguish curves of symbolic functions with random coefficients from latents of
untrained networks, with new curves in every epoch. One program trains it at three learning rates.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll
from lax_learning import symbolic

points = jnp.linspace(-1, 1, 60)[:, None]
formulas = symbolic.parse_library("N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2\n2*N0*sin(3*U0*X[:,0])")
curves = symbolic.curves_at(points, formulas, symbolic.mlp_generator(1, 5))
critic = symbolic.critic(60, hidden=(64, 64))
rates = jnp.array([1e-4, 1e-3, 1e-2])


def train(key, rate):
    adam = optax.adam(rate)
    step = symbolic.critic_step(critic, adam, objective="bce")
    run = symbolic.train_critic(step, curves.real, curves.fake, num_epochs=300, iterations=5)
    init_key, train_key = jax.random.split(key)
    return run(train_key, symbolic.init_critic(init_key, critic, adam))[1].accuracy


accuracy = ll.ensemble(train, in_axes=(0, 0))(jax.random.split(jax.random.key(0), 3), rates)

# %%
# Accuracy is measured at the first step of each epoch, on curves not seen before.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, curve, color in (("functions", curves.real, "C0"), ("networks", curves.fake, "C1")):
    drawn = jnp.concatenate([curve(key).reshape(-1, 60) for key in jax.random.split(jax.random.key(1), 3)])
    left.plot(points[:, 0], drawn[:10].T, color=color, alpha=0.6)
    left.plot([], [], color=color, label=name)
left.legend()
for rate, of_rate in zip(rates, accuracy[:, :, 0], strict=True):
    right.plot(of_rate.reshape(-1, 20).mean(axis=1), label=f"learning rate {rate:g}")
right.set(xlabel="20 epochs", ylabel="accuracy on new curves", ylim=(0.4, 1))
right.axhline(0.5, color="0.6", linestyle=":")
right.legend(loc="lower right")
plt.show()
