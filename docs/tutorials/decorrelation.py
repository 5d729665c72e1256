"""
Decorrelation with any rule
===========================

Neighbouring pixels of a digit are correlated, so a step of gradient descent moves mostly along a few
directions that all images share. A matrix R before each layer, learned without gradients, removes the
correlations, and any rule can then learn from the decorrelated inputs.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
digits = ll.data.mnist(key)


def pooled(x):
    """Returns images of 14 x 14 pixels, each the mean of four."""
    return x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)


data = digits._replace(train=digits.train._replace(x=pooled(digits.train.x)))
data = data._replace(test=digits.test._replace(x=pooled(digits.test.x)))
model, loss = ll.mlp((196, 64, 10), activation=jnp.tanh), ll.softmax_cross_entropy

# %%
# How R learns
# ------------
# R learns only from its own outputs ``z = R x``: ``R <- R - eta ((1 - kappa) C_off + kappa V) R``, where
# ``C_off`` contains the off-diagonal second moments of z, and ``V`` the mean squares of z minus 1.

dynamics = ll.decorrelation.dynamics(3e-3, kappa=0.5)


def make_rule(model):
    return ll.feedback_alignment(model, loss)


plain = make_rule(model)
decorrelated = ll.decorrelation.rule(make_rule, model, dynamics)

# %%
# Training
# --------
# The wrapped rule is a rule like any other, with R in its state. The trained model includes R; use
# :func:`lax_learning.decorrelation.wrap` to get it for evaluation.

updates, every = 600, 50


def evaluate_plain(key, params, state, data):
    return ll.accuracy(model.apply(params, data.test.x), data.test.y)


def evaluate_decorrelated(key, params, state, data):
    with_r = ll.decorrelation.wrap(model, state.layers)
    return ll.accuracy(with_r.apply(params, data.test.x), data.test.y)


def run(rule, evaluate, rate):
    train = ll.make_train(
        rule,
        optax.sgd(rate),
        init=model.init,
        num_updates=updates,
        batch_size=64,
        evaluate=evaluate,
        every=every,
    )
    return jax.jit(train)(key, data)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
steps = jnp.arange(0, updates + 1, every)
for rate, style in ((0.03, "--"), (0.1, "-")):
    of_plain, of_decorrelated = (
        run(plain, evaluate_plain, rate),
        run(decorrelated, evaluate_decorrelated, rate),
    )
    left.plot(steps, of_plain.evaluations, style, color="C0", label=f"plain, rate {rate:g}")
    left.plot(steps, of_decorrelated.evaluations, style, color="C1", label=f"decorrelated, rate {rate:g}")
left.set(xlabel="updates", ylabel="accuracy on test images", ylim=(0, 1))
left.legend(loc="lower right")
layers = of_decorrelated.state.rule_state.layers
vectors = ll.decorrelation.inputs(model, of_decorrelated.state.params, layers, data.test.x)
name = sorted(vectors)[0]
for label, z in (("pixels", vectors[name]), ("after R", ll.decorrelation.apply(layers[name], vectors[name]))):
    moments = z.T @ z / len(z)
    sizes = jnp.sqrt(jnp.diagonal(moments)) + 1e-3
    off = (moments / sizes[:, None] / sizes)[jnp.triu_indices(len(moments), 1)]
    right.hist(off, bins=50, range=(-1, 1), density=True, alpha=0.6, label=label)
right.set(xlabel="normalised moments of pairs of inputs", ylabel="density")
right.legend()
plt.show()

# %%
# R removes the moments of pairs. The gain in accuracy is small on these images: a faster start at the small
# rate, and none at the larger one.
#
# Weights without R
# -----------------
# For export, fold R into the weights: with these weights, the original model computes the same function.

params = ll.decorrelation.fold(model, of_decorrelated.state.params, layers, data.test.x)
difference = model.apply(params, data.test.x) - ll.decorrelation.wrap(model, layers).apply(
    of_decorrelated.state.params, data.test.x
)
print(f"largest difference of an output: {jnp.abs(difference).max():.1e}")

# %%
# To try
# ------
# - Node perturbation in ``make_rule``: its noise is on the pre-activations, and R changes their inputs.
# - ``kappa=0`` removes correlations but does not normalise variances.
# - :doc:`/results/decorrelation` has the gain and cost on all of MNIST, also with convolutions.
