"""
Every rule on your own Flax model
=================================

A Flax model is a function of parameters and a batch, so every rule accepts it unmodified. Here eight rules
compute the gradient of a network with a layer norm and a residual connection. Bars show the cosine of a
single gradient to that of backprop, averaged over 8 keys. It includes the readout, whose gradient is exact
in feedback rules.
"""

import jax
import matplotlib.pyplot as plt
from flax import linen

import lax_learning as ll


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.tanh(linen.Dense(64)(x))
        h = h + linen.tanh(linen.Dense(64)(linen.LayerNorm()(h)))
        return linen.Dense(10)(h)


key = jax.random.key(0)
data = ll.data.mnist1d(key, sizes=(500, 0, 100))
x, y = data.train.x[:100], data.train.y[:100]
net = Net()
model, loss = ll.Model(net.apply, init=lambda key: net.init(key, x)), ll.softmax_cross_entropy

feedback_alignment = ll.feedback_alignment(model, loss)
rules = {
    "backprop": ll.backprop(model, loss),
    "sign symmetry": ll.sign_symmetry(model, loss, magnitude="fixed"),
    "feedback alignment": feedback_alignment,
    "guided gradient": ll.guided_gradient(model, loss, feedback_alignment),
    "direct feedback alignment": ll.direct_feedback_alignment(model, loss),
    "PEPITA": ll.pepita(model, loss),
    "node perturbation": ll.node_perturbation(model, loss, sigma=0.01),
    "weight perturbation": ll.weight_perturbation(model, loss, sigma=0.001),
}

# %%
# Credit is assigned where parameters meet data:

print(ll.sites(model, model.init(key), x))

# %%
# All rules are called in the same way: with a key, parameters, the rule's state and a batch.


def cosine(rule, key):
    params = model.init(key)
    _, grads, _ = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)
    _, exact, _ = rules["backprop"].value_and_grad(key, params, (), x, y)
    return ll.metrics.cosine_similarity(grads, exact)


keys = jax.random.split(key, 8)
found = {
    name: jax.jit(jax.vmap(lambda key, rule=rule: cosine(rule, key)))(keys) for name, rule in rules.items()
}
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
axes.barh(list(found), [c.mean() for c in found.values()], xerr=[c.std() for c in found.values()])
axes.invert_yaxis()
axes.set_xlabel("cosine to backprop at initialisation")
plt.show()
