"""
Variance of perturbation rules: weights and units
=================================================

For one example and one linear layer, the relative variance is D + 1 for weight perturbation of D weights, and
n + 1 for node perturbation of n units. Points are measured over 1,000 draws, and lines show the theory.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

model = ll.Model(lambda w, x: x @ w)
key = jax.random.key(0)
inputs, units = 20, (1, 2, 4, 8, 16, 32)


def linear(output, y):
    return (output * y).sum(axis=-1)


def relative_variance(rule, units):
    x, y, w = jnp.ones((1, inputs)), jnp.ones((1, units)), jnp.zeros((inputs, units))
    exact = jax.grad(lambda w: linear(model.apply(w, x), y).mean())(w)
    moments = ll.metrics.draw_moments(rule, key, w, (), x, y, exact, 1000)
    return ll.metrics.bias_variance(moments).relative_variance


weight = ll.weight_perturbation(model, linear, sigma=0.1)
signs = ll.weight_perturbation(model, linear, sigma=0.1, noise="rademacher")
node = ll.node_perturbation(model, linear, sigma=0.1)
laws = {
    "weight perturbation: 20 n + 1": (weight, lambda n: inputs * n + 1),
    "weight perturbation, signs: 20 n - 1": (signs, lambda n: inputs * n - 1),
    "node perturbation: n + 1": (node, lambda n: n + 1),
}

# %%
# Error bars are two standard errors.
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, (rule, law) in laws.items():
    found = [relative_variance(rule, n) for n in units]
    (line,) = axes.plot(units, [law(n) for n in units], label=name)
    values, errors = [f.value for f in found], [2 * f.standard_error for f in found]
    axes.errorbar(units, values, errors, fmt="o", color=line.get_color())
axes.set(xscale="log", yscale="log", xlabel="units n", ylabel="variance / |gradient|²")
axes.legend()
plt.show()
