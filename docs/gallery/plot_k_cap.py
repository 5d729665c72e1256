"""
Formation of a k-cap assembly
=============================

Of 200 randomly connected units, the 20 with the largest inputs fire. Synapses between units that fire in
succession are strengthened. While one stimulus is shown repeatedly, the set of units that fire converges to
an assembly. Without the stimulus, activating a part of the assembly recalls the rest.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from lax_learning import plasticity

units, cap, rounds, gain = 200, 20, 30, 0.1
key = jax.random.key(0)
drive_key, graph_key = jax.random.split(key)
drive = jax.random.binomial(drive_key, 20, 0.1, (units,)) / 2.0  # input from the stimulus to each unit
graph = jax.random.bernoulli(graph_key, 0.1, (units, units)).astype(float)


def fire(drive, fired, weights):
    return plasticity.top_k_mask(drive + fired @ weights, cap).astype(float)


def show(carry, _):
    fired, weights = carry
    after = fire(drive, fired, weights)
    weights = weights * (1 + gain * jnp.outer(fired, after))  # between units that fired in succession
    return (after, weights), after


(assembly, weights), history = jax.lax.scan(show, (jnp.zeros(units), graph), length=rounds)

# %%
# Recall without the stimulus, starting from larger and larger parts of the assembly.
members = jnp.flatnonzero(assembly)
shares, recalled = jnp.linspace(0.1, 1, 10), []
for share in shares:
    fired = jnp.zeros(units).at[members[: int(share * cap)]].set(1.0)
    for _ in range(5):
        fired = fire(0.0, fired, weights)
    recalled.append(fired @ assembly / cap)

order = jnp.argsort(-history.sum(axis=0))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.imshow(history[:, order[:80]].T, aspect="auto", cmap="Greys", interpolation="nearest")
left.set(xlabel="round", ylabel="units that fired, most frequent first")
right.plot(shares, recalled, marker="o")
right.plot(shares, shares, ":", color="0.6")
right.set(xlabel="share of the assembly activated", ylabel="share that fires after 5 rounds", ylim=(0, 1.05))
plt.show()
