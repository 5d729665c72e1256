"""
Birth and death of neurons
==========================

A teacher network of 10 ReLU units in 50 dimensions generates the targets. A student of 50 units learns them
by gradient descent. Does it learn faster if harmful units are killed and useful units are copied? This is
neuron birth-death. The size of the student stays the same.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lax_learning as ll

features, units = 50, 50
problem = ll.data.planted(features, 10)
student = ll.mlp((features, units, 1), b_init=None)
exact = ll.backprop(student, ll.squared_error)

# %%
# A unit is a weight vector and a charge
# --------------------------------------
# The network is ``f(x) = sum_i c_i relu(w_i . x)``: unit i has the direction ``w_i`` and the output weight,
# or charge, ``c_i``. The library needs to know where the units are in the params: here they are columns of
# the first matrix and rows of the second, whose entries are the charges. It needs no other information about
# the model.

axes_of_units = ({"w": 1}, {"w": 0})


def charges(params):
    return params[1]


# %%
# Which units are killed and copied
# ---------------------------------
# The rate of a unit is ``V_i = c_i dL/dc_i``: how fast the loss grows when its charge is scaled up. At every
# step, a unit has an event with probability ``alpha |V_i|``. There are two schemes:
#
# - *clone*: a unit with V > 0 is overwritten by a copy of another unit, and a unit with V < 0 overwrites
#   another unit with a copy of itself;
# - *prior*: a unit with V > 0 is replaced by a new one with charge 0, and no unit is copied.

runs = {  # alpha and scheme
    "gradient descent": (0.0, "clone"),
    "with clones": (1.0, "clone"),
    "with fresh starts": (0.01, "prior"),
}

# %%
# Training
# --------
# Events can follow every step of gradient descent. ``events.origin`` gives the unit that each unit was copied
# from, and ``state.ancestor`` the initial unit that it descends from, so the number of different ancestors is
# the number of the 50 lineages that survive. Each batch has 100 new points on the unit sphere. Alpha is
# traced, so gradient descent and clones share one program.

steps, every, seeds = 4_000, 100, 2


def run(key, alpha, scheme):
    population = ll.birth_death.dynamics(alpha, axes=axes_of_units, charges=charges, scheme=scheme)
    teacher_key, init_key, run_key = jax.random.split(key, 3)
    teacher, params = problem.init(teacher_key), student.init(init_key)

    def step(carry, key):
        params, state = carry
        data_key, event_key = jax.random.split(key)
        loss, grads, _ = exact.value_and_grad(key, params, (), *problem.sample(data_key, teacher, 100))
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.02 * g, grads))
        (params, state), _ = population.update(event_key, params, state, grads)
        return (params, state), loss

    def interval(carry, key):
        carry, losses = jax.lax.scan(step, carry, jax.random.split(key, every))
        params, state = carry
        lineages = (jnp.bincount(state.ancestor + 1, length=units + 1)[1:] > 0).sum()
        return carry, (losses.mean(), lineages, weighted(params))

    start = params, population.init(params)
    _, curves = jax.lax.scan(interval, start, jax.random.split(run_key, steps // every))
    return (*curves, weighted(teacher))


def weighted(params):
    """Returns ``|c_i| w_i`` of every unit in the first two dimensions."""
    return (params[0]["w"][:2] * jnp.abs(params[1]["w"][:, 0])).T


keys = jax.random.split(jax.random.key(0), seeds)
over_seeds = jax.jit(jax.vmap(run, in_axes=(0, None, None)), static_argnums=2)
found = {name: over_seeds(keys, *of_run) for name, of_run in runs.items()}

# %%
# Trajectories of the units
# -------------------------
# Each line is the trajectory of one unit of the first seed, and each dot its end. Dashed rays are the
# teacher's units, in two of the 50 dimensions. Under gradient descent, all units follow separate
# trajectories. With clones, straight lines are jumps of units that were overwritten, and several dots
# coincide. With this alpha, fresh starts are so rare that there is almost no difference from gradient
# descent.

figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.6), sharex=True, sharey=True, layout="constrained")
for axes, (name, (_, _, ways, teacher)) in zip(all_axes, found.items(), strict=True):
    rays = teacher[0] / jnp.linalg.norm(teacher[0], axis=1, keepdims=True)
    for ray in rays:
        axes.plot([0, ray[0]], [0, ray[1]], "--", color="0.6", linewidth=0.8, zorder=0)
    axes.plot(ways[0, :, :, 0], ways[0, :, :, 1], color="C0", linewidth=0.8, alpha=0.6)
    axes.plot(ways[0, -1, :, 0], ways[0, -1, :, 1], "o", color="C3", markersize=3.5)
    axes.set(title=name, xlabel="first coordinate of |c| w", xlim=(-0.15, 0.15), ylim=(-0.15, 0.15))
all_axes[0].set(ylabel="second coordinate")
plt.show()

# %%
# Loss and lineages
# -----------------
# Means over two seeds. Clones are ahead for a few hundred steps and then fall behind. The right panel shows
# why: even if all units are equally good, the noise of a batch kills some and copies others, and lost
# lineages do not come back. The teacher has 10 units. After the 100,000 steps of :doc:`/results/birth_death`,
# three lineages are left, and three directions cannot represent ten. The paper's proof is for the limit of
# many units, in which no lineage dies out by chance.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
updates = jnp.arange(every, steps + 1, every)
for name, (losses, lineages, _, _) in found.items():
    left.loglog(updates, losses.mean(axis=0), label=name)
    right.plot(updates, lineages.mean(axis=0), label=name)
left.set(xlabel="steps", ylabel="squared error of the batch")
left.legend()
right.axhline(10, color="0.6", linestyle=":")
right.set(xlabel="steps", ylabel="surviving lineages (dotted: teacher's units)", ylim=(0, units + 1))
plt.show()
for name, (losses, lineages, _, _) in found.items():
    print(f"{name:18} loss {losses[:, -10:].mean():.4f}   lineages {lineages[:, -1].mean():4.1f}")

# %%
# Where it helps: a bad start
# ---------------------------
# A sum of charged Gaussians is fitted to a function with two hills and a valley. All Gaussians start at the
# same place, far from the second hill, where gradients are nearly zero. Copies do not help either, because
# all units are alike. New units, drawn at random, can land where they are needed. The params are now a dict;
# any pytree works.

grid = jnp.linspace(-5, 5, 100)[:, None]


def bumps(params, x):
    return jnp.exp(-jnp.square(x - params["place"])) @ params["charge"][:, None] / params["charge"].size


target = jnp.exp(-jnp.square(grid + 2)) - 1.5 * jnp.exp(-jnp.square(grid)) + jnp.exp(-jnp.square(grid - 2))
model = ll.Model(bumps)
of_grid = ll.backprop(model, ll.squared_error)


def fresh(key, params):
    return {"place": 2 * jax.random.normal(key, params["place"].shape), "charge": 0 * params["charge"]}


def learn(key, alpha, scheme):
    population = ll.birth_death.dynamics(
        alpha,
        axes={"place": 0, "charge": 0},
        charges=lambda params: params["charge"],
        scheme=scheme,
        center="mean",
        prior=fresh,
    )
    place_key, charge_key, run_key = jax.random.split(key, 3)
    place, charge = jax.random.normal(place_key, (100,)), jax.random.normal(charge_key, (100,))
    params = {"place": -2 + 0.1 * place, "charge": charge}

    def step(carry, key):
        params, state = carry
        loss, grads, _ = of_grid.value_and_grad(key, params, (), grid, target)
        grads = jax.tree.map(lambda g: 100 * g, grads)  # per unit: each contributes 1 / 100
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.05 * g, grads))
        return population.update(key, params, state, grads)[0], loss

    (params, _), losses = jax.lax.scan(
        step, (params, population.init(params)), jax.random.split(run_key, 3000)
    )
    return losses, params


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
over_seeds = jax.jit(jax.vmap(learn, in_axes=(0, None, None)), static_argnums=2)
for (name, (_, scheme)), alpha in zip(runs.items(), (0.0, 0.05, 0.05), strict=True):
    losses, params = over_seeds(keys, alpha, scheme)
    left.loglog(jnp.arange(1, 3001), losses.mean(axis=0), label=name)
    right.plot(grid[:, 0], model.apply(jax.tree.map(lambda leaf: leaf[0], params), grid)[:, 0])
left.set(xlabel="steps", ylabel="squared error")
left.legend()
right.plot(grid[:, 0], target[:, 0], "k:", label="target")
right.set(xlabel="x", ylabel="sum of the bumps, first seed")
right.legend()
plt.show()

# %%
# To try
# ------
# - ``charge="split"``: copies share the charge of the unit they come from, so the function does not jump.
# - A smaller ``alpha`` for clones: fewer events, and more surviving lineages.
# - Momentum: :func:`lax_learning.birth_death.follow` applies the same resampling to the optimiser's state.
# - :doc:`/results/birth_death` has 32 seeds and 100,000 steps, and compares variants.
