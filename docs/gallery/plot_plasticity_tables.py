"""
Meta-learned plasticity tables
==============================

The change of a synapse is an entry of a table, indexed by whether its presynaptic and postsynaptic units
fired. The tables are meta-learned on half-spaces by gradient descent through a pass over a batch. In the
output layer the postsynaptic side is the label. There, synapses learn to grow where both sides agree and
shrink where they differ.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll
from lax_learning import plasticity

key = jax.random.key(0)
points = ll.data.half_space(key, 16)
network = plasticity.k_cap_mlp((16, 50, 50, 2), cap=25, rule=plasticity.pre_post)
adam = optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01))
meta = plasticity.meta_learn(network, network.init(key), adam, num_updates=300)
history = jax.jit(meta)(key, points)

# %%
# The tables of the hidden layers and of the output layer after 300 batches.
tables = jax.tree.leaves(history.state.params.tables)
figure, axes = plt.subplots(
    1,
    1 + len(tables),
    figsize=(4 + 2.6 * len(tables), 3),
    layout="constrained",
    width_ratios=(1.6, *[1] * len(tables)),
)
axes[0].plot(history.losses)
axes[0].axhline(jnp.log(2).item(), color="0.6", linestyle=":")
axes[0].set(xlabel="batches", ylabel="loss after a pass over the batch")
for panel, table in zip(axes[1:], tables, strict=True):
    table = jnp.asarray(table).reshape(-1, 2, 2)[0]
    panel.imshow(table, vmin=-1.2, vmax=1.2, cmap="RdBu_r")
    for row in (0, 1):
        for column in (0, 1):
            panel.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center")
    panel.set_xticks([0, 1], ["post silent", "post fires"])
    panel.set_yticks([0, 1], ["pre silent", "pre fires"])
plt.show()
