"""Layers of networks: named weights, with their shapes and initialisers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning import _checks as checks
from lax_learning.models import Model
from lax_learning.types import Key, Params, Weights

Activation = Callable[[Array], Array]

ACTIVATION = "a function of z, such as jax.nn.relu"
INITIALISER = "an initialiser (key, shape, dtype) -> array, such as jax.nn.initializers.zeros"

Shapes = dict[str, tuple[tuple[int, ...], Initializer | None]]
"""Shape and initialiser of every weight of a layer; weights without an initialiser are left out."""


def layer(shape: tuple[int, ...], w_init: Any, b_init: Any) -> Shapes:
    """Returns the weights of a layer with `w` of a shape `[..., in, out]`, and `b [out]`."""
    return {"w": (shape, w_init), "b": (shape[-1:], b_init)}


def affine(x: Array, weights: Weights) -> Array:
    """Returns `x w + b`."""
    z = x @ weights["w"]
    return z + weights["b"] if "b" in weights else z


def places(length: int, size: int, step: int, padding: str) -> int:
    """Returns the number of positions of a kernel along an axis."""
    return -(-length // step) if padding == "SAME" else (length - size) // step + 1


def patches(x: Array, size: int, step: int, padding: str) -> Array:
    """Returns all patches, `[batch, down, across, size * size * channels]`; one slice per kernel entry."""
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (step, step), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    down, across = (places(n, size, step, "VALID") for n in x.shape[1:3])
    points = [
        x[:, i : i + (down - 1) * step + 1 : step, j : j + (across - 1) * step + 1 : step]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.stack(points, axis=-2).reshape(*points[0].shape[:3], -1)


def max_pool(x: Array, window: int) -> Array:
    if window == 1:
        return x
    shape = (1, window, window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, shape, "VALID")


def initialiser(layers: Sequence[Shapes], dtype: DTypeLike) -> Callable[[Key], Params]:
    """Returns a function `key -> params` that draws the weights of all layers."""
    names = {"w": "w_init", "u": "recurrent_init", "b": "b_init"}
    checks.check_floating_dtype("dtype", dtype)
    for name, (_, given) in (weight for shapes in layers for weight in shapes.items()):
        if name != "b" or given is not None:
            checks.check_callable(names[name], given, INITIALISER, num_arguments=3)

    def weights(key: Key, shapes: Shapes) -> Weights:
        drawn = {}
        for k, (name, (shape, init)) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
            if init is not None:
                drawn[name] = checks.as_floating(names[name], init(k, shape, dtype))
                checks.check_shapes([names[name]], [drawn[name]], [shape])
        return drawn

    def init(key: Key) -> Params:
        checks.check_key("key", key)
        keys = jax.random.split(key, len(layers))
        return tuple(weights(k, shapes) for k, shapes in zip(keys, layers, strict=True))

    return init


def as_layers(name: str, params: Any, num_layers: int) -> tuple[dict[str, Any], ...]:
    """Returns the weights of each layer as a dict of floating-point arrays; every layer must have a `w`."""
    layers = checks.as_tuple(name, params, "a sequence with the weights of each layer")
    if len(layers) != num_layers:
        raise ValueError(f"{name}: expected {num_layers} layers, got {len(layers)}")
    return tuple(_as_weights(f"{name}[{i}]", weights) for i, weights in enumerate(layers))


def _as_weights(name: str, weights: Any) -> dict[str, Any]:
    if not isinstance(weights, Mapping) or weights.get("w") is None:
        got = sorted(weights) if isinstance(weights, Mapping) else checks.describe(weights)
        raise ValueError(f"{name}: expected a dict with the entry 'w', got {got}")
    given = {k: v for k, v in weights.items() if v is not None}
    return given | {k: checks.as_floating(f"{name}[{k!r}]", given[k]) for k in ("w", "u", "b") if k in given}


def network(
    layers: Sequence[Shapes],
    input_shape: Sequence[int | str],
    dtype: DTypeLike,
    run: Callable[[tuple[Weights, ...], Array], Array],
) -> Model:
    """Returns a model with these layers that calls `run(params, x)`, after checks that their shapes fit."""

    def apply(params: Params, x: Any) -> Array:
        params, x = as_layers("params", params, len(layers)), checks.as_array("x", x)
        sizes = zip(x.shape[1:], input_shape, strict=False)
        if x.ndim != 1 + len(input_shape) or any(n != m for n, m in sizes if m != "steps"):
            expected = ", ".join(["batch", *map(str, input_shape)])
            raise ValueError(f"x: expected shape [{expected}], got {list(x.shape)}")
        for i, (weights, shapes) in enumerate(zip(params, layers, strict=True)):
            for name, (shape, _) in shapes.items():
                if name in weights:
                    checks.check_shapes([f"params[{i}][{name!r}]"], [weights[name]], [shape])
                elif name != "b":
                    raise ValueError(f"params[{i}]: expected the entry {name!r}, got {sorted(weights)}")
        return run(params, x)

    return Model(apply, initialiser(layers, dtype))


def for_each(name: str, value: Any, number: int, of: str) -> tuple[Activation, ...]:
    """Returns one activation per layer, from a single activation or a sequence."""
    each: tuple[Any, ...] = (value,) * number if callable(value) else checks.as_tuple(name, value, ACTIVATION)
    for i, function in enumerate(each):
        checks.check_callable(name if callable(value) else f"{name}[{i}]", function, ACTIVATION)
    if len(each) != number:
        raise ValueError(f"{name}: expected {number}, one per {of}, got {len(each)}")
    return each
