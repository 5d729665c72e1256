"""
Birth and death of neurons
==========================

A student network of 40 units learns from a teacher of 5. Units whose charge increases the loss are killed,
units whose charge decreases it are cloned, and the number of units stays the same. On this problem, birth and
death do not help: eventually most units are copies of a few, and the loss stops falling. On a mixture of
Gaussians they do help: see :doc:`/results/birth_death`.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

units = 40
problem = ll.data.planted(20, 5)
student = ll.mlp((20, units, 1), b_init=None)
axes_of_units = ({"w": 1}, {"w": 0})
exact = ll.backprop(student, ll.squared_error)


def train(key, alpha):
    population = ll.birth_death.dynamics(alpha, axes=axes_of_units, charges=lambda params: params[1])
    teacher_key, init_key, run_key = jax.random.split(key, 3)
    teacher, params = problem.init(teacher_key), student.init(init_key)

    def step(carry, key):
        params, state, lineage = carry
        data_key, event_key = jax.random.split(key)
        loss, grads, _ = exact.value_and_grad(key, params, (), *problem.sample(data_key, teacher, 100))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        (params, state), events = population.update(event_key, params, state, grads)
        lineage = lineage[events.origin]
        return (params, state, lineage), (loss, (jnp.bincount(lineage, length=units) > 0).sum())

    start = params, population.init(params), jnp.arange(units)
    return jax.lax.scan(step, start, jax.random.split(run_key, 4000))[1]


# %%
# Six seeds with and without events; alpha = 0 is gradient descent.
keys, alphas = jax.random.split(jax.random.key(1), 6), jnp.array([0.0, 1.0])
over_seeds = jax.vmap(train, in_axes=(0, None))
losses, lineages = jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))(keys, alphas)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for alpha, of_alpha in zip(alphas, losses, strict=True):
    smooth = of_alpha.reshape(len(keys), -1, 100).mean(axis=2)
    left.semilogy(jnp.arange(50, 4000, 100), smooth.mean(axis=0), label=f"alpha = {alpha:g}")
left.set(xlabel="updates", ylabel="squared error")
left.legend()
right.plot(lineages[1].T, color="C1", alpha=0.5)
right.set(xlabel="updates", ylabel="surviving lineages, alpha = 1", ylim=(0, units))
plt.show()
