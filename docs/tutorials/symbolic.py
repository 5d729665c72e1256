"""
Functions or untrained networks: a critic decides
=================================================

The first layers of a network that fits a formula might come to compute parts of that formula, or anything
else. A critic that knows what curves of functions look like could tell which. It needs no trained network to
learn from: on one side it is shown curves of functions with random coefficients, on the other curves of
networks that have learned nothing.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll
from lax_learning import symbolic

key = jax.random.key(0)
x = jnp.linspace(-3, 3, 60)[:, None]

# %%
# Untrained networks
# ------------------
# A latent of a network is a curve over the input. In a disentangled network every latent has a network of
# its own, whose weights start as normal numbers without biases: then all its kinks are at 0, and the curve
# is two straight lines. That would be told at a glance. A perceptron with uniform weights and biases, on the
# right, bends elsewhere too; it is what the critic has to beat.

disentangled, perceptron = symbolic.dsn_generator(1, 10), symbolic.mlp_generator(1, 5)
quadratic = "N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2"
functions = symbolic.parse_library(quadratic)
curves = symbolic.curves_at(x, functions, perceptron)

# %%
# Formulas are parsed, never run as Python: ``N0`` is normal, ``U0`` would be uniform, drawn anew for every
# function. An untrained curve looks most like a parabola, so parabolas are the first library.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(x, disentangled.apply(disentangled.init(key), x), color="C1", alpha=0.7)
left.set(title="disentangled, without biases", xlabel="x", ylabel="latent")
for drawn, label, color in ((curves.real, "functions", "C0"), (curves.fake, "networks", "C1")):
    several = jnp.concatenate([drawn(k) for k in jax.random.split(key, 3)])
    right.plot(x, several.T, color=color, alpha=0.6)
    right.plot([], [], color=color, label=label)
right.set(title="perceptron and parabolas", xlabel="x")
right.legend()
plt.show()

# %%
# A critic
# --------
# A perceptron reads the 60 points of a curve and gives one number: above 0 is for a function. Every epoch
# draws five functions and a new network of five latents, and takes five steps of Adam on them. The accuracy
# is that of the first of these steps, on curves that nothing has been learned from. Seeds and learning rates
# are an ensemble, one program.

epochs, rates = 300, jnp.array([1e-4, 1e-3, 1e-2])


def train(curves, objective="bce"):
    """Critics and their accuracies `[rate, seed, epoch]`."""
    judge = symbolic.critic(*curves.curve_shape)

    def one(key, rate):
        adam = optax.adam(rate)
        step = symbolic.critic_step(judge, adam, objective=objective)
        run = symbolic.train_critic(step, curves.real, curves.fake, num_epochs=epochs)
        init_key, run_key = jax.random.split(key)
        state, metrics = run(run_key, symbolic.init_critic(init_key, judge, adam))
        return state.params, metrics.accuracy[:, 0]

    over_rates = jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))
    return jax.jit(over_rates)(jax.random.split(key, 2), rates)


critics, by_entropy = train(curves)
_, by_distance = train(curves, objective="wgan")
figure, all_axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
for axes, found, title in zip(
    all_axes, (by_entropy, by_distance), ("cross-entropy", "Wasserstein"), strict=True
):
    for rate, of_rate in zip(rates, found.mean(axis=1), strict=True):
        axes.plot(jnp.arange(10, epochs, 20), of_rate.reshape(-1, 20).mean(axis=1), label=f"rate {rate:g}")
    axes.axhline(0.5, color="0.6", linestyle=":")
    axes.set(title=title, xlabel="epochs", ylim=(0.3, 1))
all_axes[0].set(ylabel="accuracy on new curves")
all_axes[0].legend(loc="lower right")
plt.show()

# %%
# The notebook that this tutorial comes from tries many configurations of the second objective: some learn,
# some forget, some do nothing. The first objective, to which its authors changed later, makes more of a
# difference than anything else; the learning rate comes next.
#
# A library too large, and a second look
# --------------------------------------
# How far can the library grow before a critic fails? Sums of kinks are what an untrained network of one
# layer computes, and there should be next to nothing to tell them by. What helps with other functions is to
# show the critic more: the slope of each curve beside its values. The slope of a network is a staircase.

kinks = "0.12*N0 + 0.05*N1*X[:,0] + 0.05*N2*abs(X[:,0] + N3) + 0.05*N4*abs(X[:,0] + 2*N5)"
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for shift, extensions, label in ((-0.2, (), "values"), (0.2, ("gradient",), "values and slopes")):
    shown = [
        symbolic.curves_at(x, symbolic.parse_library(text), perceptron, extensions=extensions, method="stack")
        for text in (quadratic, kinks)
    ]
    found = [train(each)[1][1, :, -100:].mean() for each in shown]
    axes.bar(jnp.arange(2) + shift, found, 0.36, label=label)
axes.axhline(0.5, color="0.6", linestyle=":")
axes.set_xticks(range(2), ("parabolas", "sums of kinks"))
axes.set(ylabel="accuracy, last 100 epochs", ylim=(0.4, 1))
axes.legend()
plt.show()

# %%
# The critic at work
# ------------------
# Last, a trained critic is frozen and judges the latents of a network that learns. The target is made of
# three parabolas, ``g0 g1 + sin(g2)``; the network has three latents and a head that puts them together.
# Without a critic any three curves do from which the head can compute the target. With one, the loss has a
# further term: what a latent costs that does not look like a function.

parabolas = jnp.hstack([
    -0.08 * (x + 0.165) ** 2 - 0.21,
    0.0785 * (x - 0.63) ** 2 - 0.252,
    0.0895 * (x + 0.21) ** 2 - 0.0375,
])  # fmt: skip
target = parabolas[:, :1] * parabolas[:, 1:2] + jnp.sin(parabolas[:, 2:])
latents = symbolic.dsn_generator(1, 3, alpha=jnp.ones((3, 1)), bias="zeros")
head, judge = ll.mlp((3, 32, 32, 1)), symbolic.critic(60)
critic_params = jax.tree.map(lambda leaf: leaf[1, 0], critics)  # a rate of 1e-3, the first seed


def fit(key, weight):
    def loss(params):
        found = latents.apply(params["latents"], x)
        error = jnp.square(head.apply(params["head"], found) - target).mean()
        cost = symbolic.critic_cost(judge.apply(critic_params, found.T), cost="logsigmoid")
        return error + weight * cost, error

    def update(carry, _):
        params, state = carry
        grads, error = jax.grad(loss, has_aux=True)(params)
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), error

    adam = optax.adam(1e-3)
    latents_key, head_key = jax.random.split(key)
    params = {"latents": latents.init(latents_key), "head": head.init(head_key)}
    (params, _), errors = jax.lax.scan(update, (params, adam.init(params)), length=3000)
    return latents.apply(params["latents"], x), errors[-1]


def correlations(found):
    """The mean over latents of the largest correlation with a parabola, and the other way round."""
    pairs = jnp.abs(jnp.corrcoef(found.T, parabolas.T)[:3, 3:])
    return jnp.array([pairs.max(axis=1).mean(), pairs.max(axis=0).mean()])


weights, keys = jnp.array([0.0, 0.1]), jax.random.split(jax.random.key(1), 4)
over_weights = jax.vmap(jax.vmap(fit, in_axes=(0, None)), in_axes=(None, 0))
found, errors = jax.jit(over_weights)(keys, weights)
figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
all_axes[0].plot(x, parabolas)
all_axes[0].set(title="parabolas of the target", xlabel="x")
for axes, of_seeds, error, title in zip(
    all_axes[1:], found, errors, ("latents, no critic", "latents, with the critic"), strict=True
):
    axes.plot(x, of_seeds[0])
    axes.set(title=title, xlabel="x")
    of_latents, of_parabolas = jax.vmap(correlations)(of_seeds).mean(axis=0)
    print(f"{title}: squared error {error.mean():.0e}, correlations {of_latents:.2f}, {of_parabolas:.2f}")
plt.show()

# %%
# The fit is as good, each latent looks like a parabola, and each parabola of the target has a latent like
# it. That says less than it seems, since parabolas are like each other: the three latents of the first seed
# are alike. Nobody asked the critic for different ones.
#
# To try
# ------
# - ``method="embed"``: a small network reads value and slope of every point first, and finds more in them.
# - The costs ``"sigmoid"`` and ``"linear"``: the first is flat under a critic that is sure, the second runs
#   away.
# - A Gaussian process in place of the untrained network:
#   :func:`lax_learning.symbolic.gaussian_process_generator`.
# - :doc:`/results/symbolic` has random search over 512 configurations, depth, and classifiers on fixed sets.
