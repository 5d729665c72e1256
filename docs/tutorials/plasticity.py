"""
Plasticity tables: transfer from half-spaces to digits
======================================================

In a k-cap network, the k units of a layer with the largest inputs fire. Synapses learn online, without
gradients, from local information: whether the presynaptic and postsynaptic units fired. A table gives the
change of a synapse for each case. Here the table is learned on a small problem and then used on a larger one.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll
from lax_learning import plasticity

key = jax.random.key(0)

# %%
# A small network on half-spaces
# ------------------------------
# The data are points in 16 dimensions, labelled by which side of a random plane they lie on. ``init`` draws
# the synapses that exist.

points = ll.data.half_space(jax.random.key(1), 16)
small = plasticity.k_cap_mlp((16, 100, 100, 2), cap=50, rule=plasticity.pre_post)
small_state = small.init(jax.random.key(2))

# %%
# Meta-learning
# -------------
# For every batch, the network is reset and reads the samples one after the other, changing its weights
# according to the tables. The loss after this pass is a function of the tables, and an optax optimiser
# minimises it with the exact gradient. The learned tables of the hidden layers and the output are printed
# below. Rows are for whether the presynaptic unit fired; columns for whether the postsynaptic unit fired or,
# in the output layer, is the label.

adam = optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01))
meta = plasticity.meta_learn(small, small_state, adam, num_updates=150)
history = jax.jit(meta)(jax.random.key(3), points)
tables = history.state.params.tables
for table in jax.tree.leaves(tables):
    print(jnp.round(table, 2))

# %%
# Transfer
# --------
# The tables fit any network of the same depth. This network has 784 inputs and ten labels. It reads 4,000
# digits once, and predicts each digit before it sees the label.

digits = ll.data.mnist(key)
large = plasticity.k_cap_mlp((784, 100, 100, 10), cap=50, rule=plasticity.pre_post)
images, labels = digits.train.x, digits.train.y.argmax(axis=1)


def accuracy_of(tables):
    moved = plasticity.transfer(tables, large)
    _, predictions, _ = plasticity.plastic_pass(large, moved, large.init(key), images, labels)
    return jnp.cumsum(predictions == labels) / jnp.arange(1, len(labels) + 1)


learned = accuracy_of(tables)
untrained = accuracy_of(small.init_tables(jax.random.key(4)))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(history.losses)
left.axhline(jnp.log(2).item(), color="0.6", linestyle=":")
left.set(xlabel="batches of half-spaces", ylabel="loss after a pass over the batch")
right.plot(learned, label="meta-learned tables")
right.plot(untrained, label="initial tables")
right.axhline(0.1, color="0.6", linestyle=":")
right.set(xlabel="digits read", ylabel="cumulative accuracy", ylim=(0, 1))
right.legend()
plt.show()

# %%
# To try
# ------
# - ``rule=plasticity.pre_post_percent``: a synapse also sees the share of its unit's inputs that fired.
# - ``estimator=functools.partial(ll.estimators.weight_perturbation, sigma=0.01)`` in ``meta_learn`` learns
#   the tables without backprop.
# - :doc:`/results/plasticity` has ten models over many seeds, compared with published results.
