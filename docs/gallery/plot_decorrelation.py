"""
Decorrelation: whitening the inputs online
==========================================

A matrix R before a layer learns from its own outputs, with three products per batch, until the outputs are
uncorrelated and have unit variance. Left and middle: second moments of 24 inputs before and after R.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lax_learning as ll

key = jax.random.key(0)
size, batch = 24, 128
position = jnp.arange(size)
covariance = jnp.exp(-jnp.abs(position[:, None] - position) / 4)  # neighbours are correlated
root = jnp.linalg.cholesky(covariance)
kappas = jnp.array([0.1, 0.5, 0.9])


def run(kappa):
    dynamics = ll.decorrelation.dynamics(0.02, kappa=kappa)

    def step(carry, key):
        state, x = carry, jax.random.normal(key, (batch, size)) @ root.T
        state, _ = dynamics.update(key, state, x)
        return state, ll.decorrelation.loss(ll.decorrelation.apply(state, x), kappa=0.5)

    return jax.lax.scan(step, dynamics.init(size), jax.random.split(key, 600))


# %%
# kappa trades off unit variances against decorrelation.
states, losses = jax.jit(jax.vmap(run))(kappas)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
after = states.R[1] @ covariance @ states.R[1].T
for panel, matrix, title in zip(axes, (covariance, after), ("inputs", "after R, kappa = 0.5"), strict=False):
    panel.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    panel.set_title(title)
for kappa, of_kappa in zip(kappas, losses, strict=True):
    axes[2].semilogy(of_kappa, label=f"kappa = {kappa:g}")
axes[2].set(xlabel="updates of R", title="mean (C - I)² / 2")
axes[2].legend()
plt.show()
