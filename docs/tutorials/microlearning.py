"""
Microlearning: five rules on MNIST
==================================

How does a synapse find out how it should change? This tutorial compares five rules on 5,000 digits and a
network with one hidden layer: perturb every weight; perturb every unit; or propagate errors back through the
forward weights, through random weights, or through learned weights.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist(key)  # a stratified split of real images, offline
model = ll.mlp((784, 64, 10), activation=jax.nn.sigmoid)
loss = ll.softmax_cross_entropy

# %%
# Five rules
# ----------
# All rules have the same signature: that of :func:`jax.value_and_grad` plus a key and a state. They differ in
# the information that each synapse needs:
#
# - *weight perturbation*: its own noise, and one number shared by all synapses;
# - *node perturbation*: the noise of its unit, and one number per example;
# - *backprop*: the error, through the transposed weights of the layer above;
# - *feedback alignment*: the error, through fixed random weights;
# - *Kolen-Pollack*: the error, through weights that receive the same updates as the forward weights.

rates = {
    "weight perturbation": 0.005,
    "node perturbation": 0.2,
    "backprop": 1.0,
    "feedback alignment": 1.0,
    "Kolen-Pollack": 1.0,
}
rules = {
    "weight perturbation": ll.weight_perturbation(model, loss, sigma=0.01),
    "node perturbation": ll.node_perturbation(model, loss, sigma=0.01),
    "backprop": ll.backprop(model, loss),
    "feedback alignment": ll.feedback_alignment(model, loss),
    "Kolen-Pollack": ll.kolen_pollack(model, loss, decay=0.01, optimizer=optax.sgd(1.0)),
}

# %%
# One gradient
# ------------
# We first compare single gradients with backprop, before training: the cosine by layer. For feedback rules,
# the readout's gradient is exact, because its error is directly available. Perturbation rules are correct
# only on average: a single draw is almost orthogonal to the gradient, the more so the more weights or units
# share one number.

params = model.init(key)
x, y = data.train.x[:200], data.train.y[:200]
exact = jax.grad(lambda params: loss(model.apply(params, x), y).mean())(params)
for name, rule in rules.items():
    _, grads, _ = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)
    cosines = [float(ll.metrics.cosine_similarity(g, e)) for g, e in zip(grads, exact, strict=True)]
    print(f"{name:20} hidden {cosines[0]:6.3f}   read-out {cosines[1]:6.3f}")

# %%
# Bias and variance
# -----------------
# A rule can be wrong on average (bias) or from draw to draw (variance). Averaging K draws divides the
# variance by K, but does not change the bias.

for name in ("weight perturbation", "node perturbation", "feedback alignment"):
    rule = rules[name]
    state = rule.init(key, params, x)
    moments = ll.metrics.draw_moments(rule, key, params, state, x, y, exact, 64)
    found = ll.metrics.bias_variance(moments)
    bias, variance = found.relative_bias, found.relative_variance
    print(
        f"{name:20} squared bias {bias.value:7.3f} +- {bias.standard_error:5.3f}   "
        f"variance {variance.value:9.2f}   in units of |gradient|^2"
    )

# %%
# Training
# --------
# A training run is a function of a key, and one program trains three seeds. Each rule has its own learning
# rate: because of their variance, perturbation rules diverge at a rate that suits backprop.


def evaluate(key, params, state, data):
    x, y = data.train.x[:200], data.train.y[:200]
    exact = jax.grad(lambda params: loss(model.apply(params, x), y).mean())(params)
    _, grads, _ = rule.value_and_grad(key, params, state, x, y)
    hidden = ll.metrics.cosine_similarity(grads[0], exact[0])
    return ll.accuracy(model.apply(params, data.test.x), data.test.y), hidden


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
updates, every = 400, 40
for name, rule in rules.items():
    train = ll.make_train(
        rule,
        optax.sgd(rates[name]),
        init=model.init,
        num_updates=updates,
        batch_size=100,
        evaluate=evaluate,
        every=every,
    )
    accuracy, cosine = ll.ensemble(train)(jax.random.split(key, 3), data).evaluations
    for axes, values in ((left, accuracy), (right, cosine)):
        axes.plot(jnp.arange(0, updates + 1, every), values.mean(axis=0), label=name)
left.set(xlabel="updates", ylabel="accuracy on test images", ylim=(0, 1))
right.set(xlabel="updates", ylabel="cosine of the hidden layer to backprop", ylim=(-0.1, 1.05))
left.legend(fontsize="small")
plt.show()

# %%
# The cosine of feedback alignment starts near 0 and grows while the weights align with the feedback, hence
# the name. Kolen-Pollack ends closer to backprop, because its feedback converges to the weights.
#
# To try
# ------
# - Give node perturbation ``num_samples=16`` and a larger learning rate.
# - Use your own model: ``ll.Model(apply)``, see :doc:`/any_model`.
# - :doc:`/results/microlearning` has the results for 32 seeds and the full network, and those of the notebook
#   that this tutorial is based on.
