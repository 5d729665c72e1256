"""
A language model without backprop
=================================

A small transformer reads the documentation that ships with Python and predicts the next character. It was
written in Linen, for no library of rules in particular. Four rules train it: backprop; a rule whose feedback
learns from noise; one that perturbs its units; and one that perturbs its weights. In code they differ by
one line, and by their rates and numbers of updates.
"""

import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import benchmarks
import lax_learning as ll
from benchmarks.characters import bits, entropies, language_model, read_text, windows
from benchmarks.language_model import figure

# %%
# The text
# --------
# Python's licence and the pages that ``help()`` shows, in lower case, every paragraph once, a dot for
# characters that are rare. One paragraph of ten is held out for the results, and one for the choice of
# learning rates. Counts in the rest say what is easy: so many bits for a held-out character by the frequency
# of each, and so many by the frequency of each behind the one before.

text = read_text()
print("".join(text.symbols[i] for i in text.train[:300]), "\n")
unigram, bigram = entropies(text.train, text.test)
print(f"{len(text.train)} characters; single characters {unigram:.3f} bits, pairs {bigram:.3f} bits")

# %%
# The model
# ---------
# Attention to earlier characters and a perceptron, two layers of each under a ``scan``: 62,752 weights, on
# windows of 8 characters.
#
# .. literalinclude:: ../../benchmarks/characters.py
#    :pyobject: Block
#
# .. literalinclude:: ../../benchmarks/characters.py
#    :pyobject: Transformer

model = language_model()
data = windows(text.train)
params = jax.jit(model.init)(jax.random.key(0))
print(sum(leaf.size for leaf in jax.tree.leaves(params)), "weights")

# %%
# Four rules, four lines
# ----------------------
# A rule takes the place of ``jax.value_and_grad``; the four lines in ``update`` are the same for all. Weight
# mirrors learn the transposed weights from noise that is sent through every product, so that no weight has
# to be read to carry an error back. Node perturbation disturbs every unit, and credits it with the change of
# the loss of its window. Perturbation of low rank disturbs all weights, sixteen times forth and back.

rules = {  # and the first rate of Adam
    "backprop": (ll.backprop(model, bits), 0.01),
    "weight mirror": (ll.weight_mirror(model, bits, optimizer=optax.sgd(0.5)), 0.01),
    "node perturbation": (ll.node_perturbation(model, bits, sigma=0.02, noise="rademacher"), 0.003),
    "low-rank perturbation": (
        ll.weight_perturbation(model, bits, sigma=0.01, rank=1, num_samples=16, difference="central"),
        0.012,
    ),
}


def train(rule, rate, num_updates, batch=64):
    """Bits of the windows of every update."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_updates))

    @jax.jit
    def update(key, params, state, opt_state, x, y):
        loss, grads, state = rule.value_and_grad(key, params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return loss, params, state, opt_state

    key = jax.random.key(0)
    params = jax.jit(model.init)(key)
    state, opt_state, losses = rule.init(key, params, data.x), optimizer.init(params), []
    for step in range(num_updates):
        noise_key, rows_key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        rows = jax.random.randint(rows_key, (batch,), 0, len(data.x))
        loss, params, state, opt_state = update(
            noise_key, params, state, opt_state, data.x[rows], data.y[rows]
        )
        losses.append(loss)
    return np.array(losses), params


# %%
# A short run
# -----------
# A few updates of each, for a first look. All begin near 6 bits, one of 64 characters. Rules that carry
# errors back soon come near to what pairs tell; those that perturb are on their way to what single
# characters tell.

held_out = windows(text.validation)
evaluate = jax.jit(lambda params: bits(model.apply(params, held_out.x), held_out.y).mean())
for name, (rule, rate) in rules.items():
    num_updates = 20 if name == "low-rank perturbation" else 100
    losses, params = train(rule, rate, num_updates)
    found = bits(model.apply(params, held_out.x), held_out.y).mean()
    print(
        f"{name:22} {num_updates:4} updates: {losses[:5].mean():.2f} bits, then {found:.2f} on held-out text"
    )

# %%
# The whole run
# -------------
# Four seeds and more updates, by ``python -m benchmarks.language_model``: five minutes of one core. The
# figure counts what each rule spends: characters times forward passes, where a pass is as many matrix
# products as a forward pass has. All four learn more than the frequencies of characters. The mirror, which
# reads no weight to carry an error back, learns much more than pairs, and stays 0.2 bits behind backprop.
# What perturbs ends 0.8 bits above pairs.

path = Path(benchmarks.__file__).parent / "results" / "language_model" / "language_model.json"
measured = json.loads(path.read_text())
figure(measured["rows"], measured["unigram"], measured["bigram"])
plt.show()
for row in measured["rows"]:
    at_end = np.array(row["bits"])[:, -1]
    print(f"{row['rule']:22} {at_end.mean():.2f} bits   {row['updates']} updates of {row['passes']} passes")

# %%
# Why perturbation is slow
# ------------------------
# One number says how good a draw was, and all that was drawn shares it: the units of a window under node
# perturbation, and all 62,752 weights under noise of low rank. The variance grows with how many share, so
# steps have to be small, and sixteen draws forth and back cost 34 passes. That is also why the output layer
# and the last layer of every block start near zero here: at first a loss then depends on few units, and the
# others add little noise.

units = ll.tapped(model).shapes(params, data.x[:1])
print(sum(leaf.size for leaf in jax.tree.leaves(units)), "units in a window")

# %%
# To try
# ------
# - Longer windows: backprop and the mirror gain, node perturbation has more units that share a number.
# - ``ll.kolen_pollack`` or ``ll.feedback_alignment`` in the place of the mirror.
# - A model of your own, in any library: :doc:`/any_model`.
