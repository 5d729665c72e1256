"""
A language model without backprop
=================================

A small transformer reads the documentation that ships with Python and predicts the next character. It is an
ordinary Linen module. Four rules train it: backprop; a rule whose feedback learns from noise; one that
perturbs units; and one that perturbs weights. In code, they differ by one line, and by their learning rates
and numbers of updates.
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
# The text is Python's licence and the pages that ``help()`` shows, in lower case, without repeated
# paragraphs, and with a dot in place of rare characters. One paragraph in ten is held out for the results,
# and another one in ten for choosing learning rates. As baselines, we compute the bits per held-out character
# from the frequencies of single characters, and from the frequencies of pairs of characters, in the training
# text.

text = read_text()
print("".join(text.symbols[i] for i in text.train[:300]), "\n")
unigram, bigram = entropies(text.train, text.test)
print(f"{len(text.train)} characters; single characters {unigram:.3f} bits, pairs {bigram:.3f} bits")

# %%
# The model
# ---------
# Two layers of causal attention and a multilayer perceptron, under a ``scan``: 62,752 weights, on windows of
# 8 characters.
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
# A rule replaces ``jax.value_and_grad``; the four lines in ``update`` are the same for all rules. The weight
# mirror learns the transposed weights from noise that is sent through every product, so errors can be carried
# back without reading any weights. Node perturbation perturbs every unit and credits it with the change in
# the loss of its window. Low-rank perturbation perturbs all weights, with sixteen draws and central
# differences.

rules = {  # rules and initial learning rates of Adam
    "backprop": (ll.backprop(model, bits), 0.01),
    "weight mirror": (ll.weight_mirror(model, bits, optimizer=optax.sgd(0.5)), 0.01),
    "node perturbation": (ll.node_perturbation(model, bits, sigma=0.02, noise="rademacher"), 0.003),
    "low-rank perturbation": (
        ll.weight_perturbation(model, bits, sigma=0.01, rank=1, num_samples=16, difference="central"),
        0.012,
    ),
}


def train(rule, rate, num_updates, batch=64):
    """Returns the mean bits per character at every update, and the trained parameters."""
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
# A few updates of each rule, for a first look. All start near 6 bits, the entropy of 64 equally likely
# characters. Rules that carry errors back soon get close to the bits of pairs. Perturbation rules approach
# the bits of single characters.

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
# ``python -m benchmarks.language_model`` runs four seeds and more updates, in five minutes on one core. The
# figure shows the cost of each rule: characters times forward passes, where a pass is the number of matrix
# products in a forward pass. All four rules learn more than the frequencies of characters. The weight mirror,
# which reads no weights to carry errors back, learns much more than pairs of characters and ends 0.2 bits
# behind backprop. The perturbation rules end 0.8 bits above pairs.

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
# The change in loss is a single number that evaluates all perturbations of a draw: those of the units in a
# window for node perturbation, and those of all 62,752 weights for low-rank perturbation. The variance grows
# with the number of units or weights that share it, so steps must be small, and sixteen draws with central
# differences cost 34 passes. This is also why the output layer and the last layer of every block start near
# zero here: the loss then depends on few units at first, and the others add little noise.

units = ll.tapped(model).shapes(params, data.x[:1])
print(sum(leaf.size for leaf in jax.tree.leaves(units)), "units in a window")

# %%
# To try
# ------
# - Longer windows: backprop and the weight mirror improve, but with node perturbation more units share
#   a loss.
# - ``ll.kolen_pollack`` or ``ll.feedback_alignment`` instead of the weight mirror.
# - A model of your own, in any library: :doc:`/any_model`.
