"""A zoo of models that were not written for this library: small, each with one thing that is hard.

Every entry makes a `Case`: a function of parameters and a batch, as its own library writes it. `scale`
multiplies all widths: layers, channels, heads. Outputs, images, sequences and vocabularies stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from equinox import nn
from flax import linen, nnx

KEY = jax.random.key(0)
BATCH = 4


class Case(NamedTuple):
    """A model, its parameters and a batch."""

    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any


def as_float64(tree: Any) -> Any:
    """The floats of a pytree in double precision."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def _drawn(number: int, *shape: int) -> np.ndarray:
    """Normal numbers from NumPy, which compiles nothing."""
    return np.random.default_rng(number).standard_normal(shape, np.float32)


def _batch(*shape: int) -> jax.Array:
    return jnp.asarray(_drawn(0, BATCH, *shape))


def _tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 7, (BATCH, 5)), jnp.int32)


def _filled(scale: int, shapes: Any) -> Any:
    """Parameters of these shapes, smaller as layers get wider; keys and counts as at the start."""
    leaves, structure = jax.tree.flatten(shapes)

    def filled(number: int, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(np.float32(0.5 * scale**-0.5) * _drawn(number, *leaf.shape))
        return KEY if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros(leaf.shape, leaf.dtype)

    return structure.unflatten([filled(i, leaf) for i, leaf in enumerate(leaves)])


def _params(scale: int, **shapes: tuple[int, ...]) -> Any:
    """Parameters by name; widths are from 4 to 6, other lengths stay as they are."""
    wide = {name: [scale * n if n in (4, 5, 6) else n for n in shape] for name, shape in shapes.items()}
    return _filled(scale, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in wide.items()})


def _linen(scale: int, net: Any, x: jax.Array) -> Case:
    return Case(net.apply, _filled(scale, jax.eval_shape(net.init, KEY, x)), x)


def _nnx(scale: int, make: Callable[[Any], Any], x: Any) -> Case:
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    params, rest = _filled(scale, params), _filled(scale, rest)
    return Case(lambda params, x: nnx.merge(graph, params, rest)(x), params, x)


def plain_mlp(scale: int = 1) -> Case:
    def apply(params, x):
        hidden = jax.nn.relu(x @ params[0]["w"] + params[0]["b"])
        return hidden @ params[1]["w"] + params[1]["b"]

    params = [_params(scale, w=(5, 6), b=(6,)), _params(scale, w=(6, 3), b=(3,))]
    return Case(apply, params, _batch(5 * scale))


def linen_residual_convolution(scale: int = 1) -> Case:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4 * scale, (3, 3))(x)
            x = x + linen.Conv(4 * scale, (3, 3))(linen.relu(linen.GroupNorm(num_groups=2)(x)))
            return linen.Dense(3)(x.mean((1, 2)))

    return _linen(scale, Net(), _batch(6, 6, 2 * scale))


def linen_separable_strided_convolution(scale: int = 1) -> Case:
    first = linen.Conv(4 * scale, (3, 3), strides=(2, 1), feature_group_count=2 * scale)
    second = linen.Conv(3 * scale, (1, 1), use_bias=False)
    flatten, out = lambda x: x.reshape(x.shape[0], -1), linen.Dense(3)
    net = linen.Sequential([first, linen.tanh, second, linen.tanh, flatten, out])
    return _linen(scale, net, _batch(6, 6, 2 * scale))


def nnx_transposed_convolution(scale: int = 1) -> Case:
    def net(rngs):
        down = nnx.Conv(2 * scale, 3 * scale, (3, 3), strides=2, rngs=rngs)
        up = nnx.ConvTranspose(3 * scale, 2 * scale, (3, 3), strides=(2, 2), rngs=rngs)
        return nnx.Sequential(down, jnp.tanh, up)

    return _nnx(scale, net, _batch(6, 6, 2 * scale))


def linen_attention_block(scale: int = 1) -> Case:
    width = 8 * scale

    class Net(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            position = self.param("position", linen.initializers.normal(0.5), (5, width))
            x = linen.Embed(7, width)(tokens) + position
            normed = linen.LayerNorm()(x)
            x = x + linen.MultiHeadDotProductAttention(2)(normed, normed)
            x = x + linen.Dense(width)(linen.gelu(linen.Dense(width)(linen.LayerNorm()(x))))
            return linen.Dense(3)(x.mean(1))

    return _linen(scale, Net(), _tokens())


def nnx_causal_decoder(scale: int = 1) -> Case:
    width = 8 * scale

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, width, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=width, decode=False, rngs=rngs)
            self.norm = nnx.RMSNorm(width, rngs=rngs)
            self.out = nnx.Linear(width, 7, rngs=rngs)

        def __call__(self, batch):
            x = self.embed(batch["tokens"])
            mask = nnx.make_causal_mask(batch["tokens"]) * batch["mask"][:, None, None, :]
            return self.out(self.norm(x + self.attention(x, mask=mask)))

    return _nnx(scale, Net, {"tokens": _tokens(), "mask": jnp.asarray(1.0 - np.eye(BATCH, 5))})


def haiku_lstm(scale: int = 1) -> Case:
    def net(x):
        core = hk.LSTM(4 * scale)
        outputs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(x.shape[0]))
        return hk.Linear(3)(outputs[-1])

    return _linen(scale, hk.without_apply_rng(hk.transform(net)), _batch(5, 4 * scale))


def _equinox(scale: int, make: Callable[[Any], Any], run: Callable[[Any, Any], Any], x: jax.Array) -> Case:
    """`run(modules, x)` of one example."""
    shapes, static = eqx.partition(eqx.filter_eval_shape(make, KEY), lambda leaf: hasattr(leaf, "dtype"))

    def apply(params, x):
        return jax.vmap(partial(run, eqx.combine(params, static)))(x)

    return Case(apply, _filled(scale, shapes), x)


def equinox_gru(scale: int = 1) -> Case:
    def make(key):
        return nn.GRUCell(4 * scale, 5 * scale, key=key), nn.Linear(5 * scale, 3, key=key)

    def run(modules, x):
        cell, out = modules
        return out(jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(5 * scale), x)[0])

    return _equinox(scale, make, run, _batch(7, 4 * scale))


def equinox_mlp(scale: int = 1) -> Case:
    make = partial(nn.MLP, 5 * scale, 3, 6 * scale, 2)
    return _equinox(scale, lambda key: make(key=key), lambda module, x: module(x), _batch(5 * scale))


def bidirectional_learned_carry(scale: int = 1) -> Case:
    def direction(p, x, reverse):
        def step(h, x):
            h = jnp.tanh(x @ p["u"] + h @ p["v"] + p["b"])
            return h, h

        start = jnp.broadcast_to(p["start"], (x.shape[1], 5 * scale))
        return jax.lax.scan(step, start, x, reverse=reverse, unroll=2)[1]

    def apply(params, x):
        x = x.swapaxes(0, 1)
        both = [direction(params[name], x, name == "backward") for name in ("forward", "backward")]
        return jnp.concatenate(both, -1).mean(0) @ params["out"]

    forward = _params(scale, u=(4, 5), v=(5, 5), b=(5,), start=(5,))
    params = {"forward": forward, "backward": jax.tree.map(jnp.negative, forward)}
    return Case(apply, params | _params(2 * scale, out=(5, 3)), _batch(5, 4 * scale))


def linen_stacked_remat_blocks(scale: int = 1) -> Case:
    width = 6 * scale

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, _=None):
            return x + linen.Dense(width)(linen.silu(linen.Dense(width)(linen.LayerNorm()(x)))), None

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(width)(x)
            block = linen.remat(Block, prevent_cse=False)
            stack = linen.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = stack()(x, None)
            return linen.Dense(3)(x)

    return _linen(scale, Net(), _batch(5 * scale))


def layers_by_counter(scale: int = 1) -> Case:
    def apply(params, x):
        def layer(i, x):
            return jnp.tanh(x @ params["stack"][i] + params["bias"][i])

        return jax.lax.fori_loop(0, 3, layer, x) @ params["out"]

    return Case(apply, _params(scale, stack=(3, 5, 5), bias=(3, 5), out=(5, 3)), _batch(5 * scale))


def nnx_layer_used_twice(scale: int = 1) -> Case:
    hidden = 6 * scale

    def net(rngs):
        first, twice = (nnx.Linear(n, hidden, rngs=rngs) for n in (5 * scale, hidden))
        out = nnx.Linear(hidden, 3, rngs=rngs)
        return nnx.Sequential(first, jnp.tanh, twice, jnp.tanh, twice, jnp.tanh, out)

    return _nnx(scale, net, _batch(5 * scale))


def tied_embedding(scale: int = 1) -> Case:
    def apply(params, tokens):
        return jnp.tanh(params["embedding"][tokens] @ params["w"]) @ params["embedding"].T

    return Case(apply, _params(scale, embedding=(7, 6), w=(6, 6)), jnp.arange(BATCH) % 7)


def weight_normalisation(scale: int = 1) -> Case:
    def apply(params, x):
        w = (1 + params["g"]) * params["v"] / jnp.linalg.norm(params["v"], axis=0)
        return (jnp.tanh(x @ w) @ params["out"]) * (1 + params["gain"])

    params = _params(scale, v=(5, 6), g=(6,), out=(6, 3), gain=(3,))
    return Case(apply, params, _batch(5 * scale))


def mixture_of_experts(scale: int = 1) -> Case:
    def apply(params, x):
        gate = jax.nn.softmax(x @ params["gate"])
        hidden = jax.nn.gelu(jnp.einsum("bi,eih->beh", x, params["experts"]))
        return jnp.einsum("be,beh,eho->bo", gate, hidden, params["out"])

    params = _params(scale, gate=(5, 3), experts=(3, 5, 6), out=(3, 6, 2))
    return Case(apply, params, _batch(5 * scale))


def diagonal_state_space(scale: int = 1) -> Case:
    def apply(params, x):
        drive = (x @ params["b"]).swapaxes(0, 1)
        decay = jnp.broadcast_to(jax.nn.sigmoid(params["decay"]), drive.shape)

        def join(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, states = jax.lax.associative_scan(join, (decay, drive))
        return (jnp.tanh(states) @ params["c"] + x.swapaxes(0, 1) @ params["d"]).mean(0)

    params = _params(scale, decay=(6,), b=(4, 6), c=(6, 3), d=(4, 3))
    return Case(apply, params, _batch(5, 4 * scale))


def custom_jvp_around_parameters(scale: int = 1) -> Case:
    @jax.custom_jvp
    def scaled_softplus(slope, x):
        return jnp.logaddexp(slope * x, 0.0)

    @scaled_softplus.defjvp
    def _(primals, tangents):
        slope, x = primals
        gate = jax.nn.sigmoid(slope * x)
        return scaled_softplus(slope, x), gate * (slope * tangents[1] + x * tangents[0])

    def apply(params, x):
        return scaled_softplus(params["slope"], x @ params["w"]) @ params["out"]

    return Case(apply, _params(scale, w=(5, 6), slope=(6,), out=(6, 3)), _batch(5 * scale))


@jax.custom_vjp
def product(w, x):
    return x @ w


product.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, d: (saved[1].T @ d, d @ saved[0].T))


def custom_vjp_around_parameters(scale: int = 1) -> Case:
    def apply(params, x):
        hidden = jnp.tanh(product(params["w"], x))
        return jnp.tanh(product(params["v"], hidden)) @ params["out"]

    return Case(apply, _params(scale, w=(5, 6), v=(6, 6), out=(6, 3)), _batch(5 * scale))


def dropout_keys_in_x(scale: int = 1) -> Case:
    dropout = linen.Dropout(0.5, deterministic=False)
    net = linen.Sequential([linen.Dense(6 * scale), linen.tanh, dropout, linen.Dense(3)])
    x = _batch(5 * scale)
    params = _filled(scale, jax.eval_shape(net.init, {"params": KEY, "dropout": KEY}, x[0]))

    def apply(params, batch):
        one = partial(net.apply, params)
        return jax.vmap(lambda x, key: one(x, rngs={"dropout": key}))(batch["x"], batch["key"])

    return Case(apply, params, {"x": x, "key": jax.random.split(KEY, BATCH)})


def jitted_checkpointed_conditional(scale: int = 1) -> Case:
    @jax.jit
    def dense(w, b, x):
        return x @ w + b

    def apply(params, x):
        hidden = jnp.tanh(dense(params["a"], params["b"], x))
        hidden = jax.checkpoint(lambda h: jnp.tanh(jax.jit(lambda h: h @ params["c"])(h)))(hidden)
        hidden = jax.lax.cond(True, lambda h: h, lambda h: 2 * h, hidden)
        return hidden @ params["out"]

    return Case(apply, _params(scale, a=(5, 6), b=(6,), c=(6, 6), out=(6, 3)), _batch(5 * scale))


ZOO: dict[str, Callable[..., Case]] = {
    make.__name__: make
    for make in (
        plain_mlp, linen_residual_convolution, linen_separable_strided_convolution,
        nnx_transposed_convolution, linen_attention_block, nnx_causal_decoder, haiku_lstm, equinox_gru,
        bidirectional_learned_carry, linen_stacked_remat_blocks, layers_by_counter, nnx_layer_used_twice,
        tied_embedding, weight_normalisation, mixture_of_experts, diagonal_state_space,
        custom_jvp_around_parameters, custom_vjp_around_parameters, dropout_keys_in_x,
        jitted_checkpointed_conditional, equinox_mlp,
    )
}  # fmt: skip
