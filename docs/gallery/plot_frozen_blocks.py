"""
A good cosine is not enough: compare with frozen blocks
=======================================================

A residual network with a norm before every block is trained by direct feedback. The updates of its blocks
have a cosine of 0.2 to their gradient, fifty times that of a random direction. Even so, the network
classifies fewer test examples correctly than one whose random blocks are never trained. Report this baseline
along with any cosine.
"""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

WIDTH, DEPTH, UPDATES = 64, 6, 300
key = jax.random.key(0)
data, loss = ll.data.mnist1d(key, sizes=(2000, 0, 1000)), ll.softmax_cross_entropy
batches = jax.tree.map(lambda a: a[:256].reshape(4, 64, -1), tuple(data.train))


def init(key):
    keys = jax.random.split(key, 4)
    weights = {
        "embed": jax.random.normal(keys[0], (40, WIDTH)),
        "up": jax.random.normal(keys[1], (DEPTH, WIDTH, WIDTH)),
        "down": jax.random.normal(keys[2], (DEPTH, WIDTH, WIDTH)),
        "readout": jax.random.normal(keys[3], (WIDTH, 10)),
    }
    return {name: w / w.shape[-2] ** 0.5 for name, w in weights.items()}


def norm(h):
    return (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 1e-5)


def apply(params, x):
    def block(h, weights):
        up, down = weights
        return h + jax.nn.relu(norm(h) @ up) @ down, None

    h, _ = jax.lax.scan(block, x @ params["embed"], (params["up"], params["down"]))
    return norm(h) @ params["readout"]


model = ll.Model(apply, init)
frozen, exact, metrics = ll.metrics.train_only(model, "[er]*"), ll.backprop(model, loss), ll.metrics
rules = {
    "backprop": (ll.backprop, model),
    "backprop, frozen blocks": (ll.backprop, frozen),  # trains only embedding and readout
    "direct feedback": (ll.direct_feedback_alignment, model),
    "direct feedback, frozen blocks": (ll.direct_feedback_alignment, frozen),
}


# %%
# One program trains each rule at four learning rates and with three seeds. At the end, it measures the cosine
# of the blocks' update to their gradient (NaN if the gradient is only rounding error), the cosine between the
# updates of four batches, and the size of activities at every depth.
def measure(rule, model, state):
    key, params, rule_state = jax.random.key(1), state.params, state.rule_state
    batch = jax.tree.map(lambda a: a[0], batches)

    def blocks(rule, params, batch):
        _, grads, _ = rule.value_and_grad(key, params, rule_state, *batch)
        return {name: grads[name] for name in ("up", "down")}

    error = metrics.rounding_error(lambda params: blocks(exact, params, batch), key, params)
    own, reference = blocks(rule, params, batch), blocks(exact, params, batch)
    of_batches = jax.lax.map(lambda batch: blocks(rule, params, batch), batches)
    return {
        "accuracy": ll.accuracy(model.apply(params, data.test.x), data.test.y),
        "cosine": metrics.resolved_cosine(own, reference, error),
        "agreement": metrics.pairwise_cosine(of_batches).value,
        "scales": metrics.depth_scales(model, rule, key, params, rule_state, *batch),
    }


def run(make, model, *, seed, rate):
    rule = make(model, loss)
    train = ll.make_train(rule, optax.adam(rate), init=init, num_updates=UPDATES, batch_size=50)
    return measure(rule, model, train(seed, data).state)


axes = {"seed": jax.random.split(key, 3), "rate": jnp.array([3e-4, 1e-3, 3e-3, 1e-2])}
found = {name: ll.grid(partial(run, *rule))(axes).results for name, rule in rules.items()}

# %%
# Means, minima and maxima over seeds. At the best learning rates, direct feedback is better when the blocks
# stay frozen. When it trains them, the values that blocks add to the stream grow from block to block.
rates = axes["rate"]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")


def draw(place, x, values, label, **style):
    (line,) = place.plot(x, values.mean(axis=0), label=label, **style)
    place.fill_between(x, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())


for name, result in found.items():
    style = {"linestyle": "--" if "frozen" in name else "-", "color": "C0" if "backprop" in name else "C1"}
    draw(left, rates, result["accuracy"], name, marker="o", **style)
    if "frozen" not in name:
        growth = result["scales"].activity["down"][:, 1]  # at a rate of 0.001
        draw(right, jnp.arange(1, DEPTH + 1), growth, name, **style)
of_blocks = found["direct feedback"]
draw(middle, rates, of_blocks["cosine"], "to the gradient", marker="o", color="C1")
draw(middle, rates, of_blocks["agreement"], "between batches", marker="o", color="C2")
left.set(xscale="log", xlabel="learning rate of Adam", ylabel="test accuracy", ylim=(0, None))
middle.set(xscale="log", xlabel="learning rate of Adam", ylabel="cosine of blocks, direct feedback")
right.set(xlabel="block", ylabel="root mean square of the block's output", ylim=(0, None))
for place in (left, middle, right):
    place.legend(fontsize="small")
plt.show()
