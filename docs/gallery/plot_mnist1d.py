"""
Learning curves on MNIST-1D
===========================

MNIST-1D has ten classes of curves with 40 points, generated from a key. It is harder than half-spaces, but a
run takes only seconds. Three seeds of each rule train side by side.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

key = jax.random.key(0)
data = ll.data.mnist1d(key)
model, loss = ll.mlp((40, 64, 64, 10), activation=jnp.tanh), ll.softmax_cross_entropy
updates, every = 3000, 150
rules = {
    "backprop": (ll.backprop(model, loss), 0.3),
    "Kolen-Pollack": (ll.kolen_pollack(model, loss, decay=1e-3, optimizer=optax.sgd(0.3)), 0.3),
    "feedback alignment": (ll.feedback_alignment(model, loss), 0.3),
    "direct feedback alignment": (ll.direct_feedback_alignment(model, loss), 0.1),
    "node perturbation": (ll.node_perturbation(model, loss, sigma=0.01), 0.015),
    "weight perturbation": (ll.weight_perturbation(model, loss, sigma=0.01), 0.003),
}


def evaluate(key, params, state, data):
    return ll.accuracy(model.apply(params, data.test.x), data.test.y)


# %%
# Examples of three classes, and accuracy on test data.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1, 2))
classes = data.train.y.argmax(axis=1)
for digit in (0, 3, 8):
    left.plot(data.train.x[classes == digit][:3].T + 6 * digit / 3, color=f"C{digit}")
left.set(title="examples of classes 0, 3 and 8", yticks=[], xlabel="point")
for name, (rule, rate) in rules.items():
    train = ll.make_train(
        rule,
        optax.sgd(rate),
        init=model.init,
        num_updates=updates,
        batch_size=50,
        evaluate=evaluate,
        every=every,
    )
    accuracy = jax.jit(jax.vmap(train, in_axes=(0, None)))(jax.random.split(key, 3), data).evaluations
    right.plot(jnp.arange(0, updates + 1, every), accuracy.mean(axis=0), label=name)
right.set(xlabel="updates", ylabel="accuracy on test data", ylim=(0, 0.8))
right.legend(loc="lower right", fontsize="small", ncols=2)
plt.show()
