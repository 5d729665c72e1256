"""
Every rule on your own Flax model
=================================

A model of Flax is a function of parameters and a batch, so every rule takes it as it is. Here a network
with a layer norm and a residual connection gets its gradient from ten rules, each averaged over 16 keys, and
the bars show how well a single one points along backprop's.
"""

import jax
from flax import linen

import lax_learning as ll


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.tanh(linen.Dense(64)(x))
        h = h + linen.tanh(linen.Dense(64)(linen.LayerNorm()(h)))
        return linen.Dense(10)(h)


key = jax.random.key(0)
data = ll.data.mnist1d(key, size=1000)
x, y = data.train.x[:100], data.train.y[:100]
net = Net()
model = ll.Model(net.apply, init=lambda key: net.init(key, x))
params = model.init(key)
