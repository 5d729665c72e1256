"""
Microlearning: five rules on MNIST
==================================

How do synapses learn whether they did well? Five rules answer in five ways, on a network of one hidden layer
and 5,000 digits: perturb every weight, perturb every unit, carry errors back through the weights, through
random weights, or through weights that learn.
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
# A rule per answer
# -----------------
# All rules have one signature, that of :func:`jax.value_and_grad` with a key in front and a state through it.
# What differs is what has to reach a synapse:
#
# - *weight perturbation*: its own noise, and one number for all;
# - *node perturbation*: the noise of its unit, and one number an example;
# - *backprop*: the error, through the transposed weights of the layer above;
# - *feedback alignment*: the error, through fixed random weights;
# - *Kolen-Pollack*: the error, through weights that receive the same updates as the forward ones.

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
# Before any training: the cosine of a gradient to that of backprop, by layer. The read-out is exact for
# feedback rules, since its error is at hand. Perturbation is right on average alone: one draw points almost
# across the gradient, and the more weights or units share a number, the more so.

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
# Two ways to be wrong: on average (bias), or from draw to draw (variance). Averages of K draws divide the
# variance by K and leave the bias as it is.

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
# A run is a function of a key, and three seeds of it are one program. Each rule has a rate of its own: one
# that suits backprop makes perturbation diverge, by its variance.


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
# Feedback alignment earns its name: its cosine starts near 0 and grows while the weights align with the
# feedback. Kolen-Pollack ends closer to backprop, since its feedback comes to equal the weights.
#
# To try
# ------
# - Give node perturbation ``num_samples=16`` and a larger rate.
# - Replace the model by one of your own: ``ll.Model(apply)``, see :doc:`/any_model`.
# - Ask :doc:`/results/microlearning` what 32 seeds and the full network say, and how the notebook that this
#   tutorial comes from compares the rules.
