"""Taps on any model, for custom rules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from lax_learning._checks import as_array, describe
from lax_learning._sites._batch import as_batch
from lax_learning._sites._plan import Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Feeds, Hooks
from lax_learning.models import Model, check_model
from lax_learning.types import Params

Taps = dict[str, Array]
"""One array per tap, by the path of the first parameter of its sum."""


class TappedRun(NamedTuple):
    """Results of running a tapped model.

    Fields:
      output: output of the model.
      inputs: for every tap, a list of the data that the products of its sum read.
      pre_activations: for every tap, `z` including the values added to it.
    """

    output: Any
    inputs: dict[str, list[Array]]
    pre_activations: Taps


class Tapped(NamedTuple):
    """A model with a tap at the end of every sum of sites.

    Fields:
      shapes: `(params, x) -> shapes and dtypes of the taps`; inside scans, axes of steps come first.
      run: `(params, x, taps=None) -> TappedRun`, with `taps` added to the pre-activations.
      pull_back: `(params, x, deltas) -> gradients`, computed locally at each site: no signal passes from tap
        to tap. Gradients are summed over examples, so deltas of the mean loss, which include the factor
        1 / batch, give gradients of the mean loss.
    """

    shapes: Callable[[Params, Any], dict[str, jax.ShapeDtypeStruct]]
    run: Callable[..., TappedRun]
    pull_back: Callable[[Params, Any, Taps], Params]


def tapped(model: Model) -> Tapped:
    """Gives access to the pre-activations of a model, for custom rules.

    A rule defines a teaching signal `delta` for every tap and pulls it back; `delta = dL/dz` gives backprop.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> opened = tapped(ll.Model(lambda w, x: jnp.tanh(x @ w)))
      >>> w, x = jnp.ones((3, 2)), jnp.ones((5, 3))
      >>> opened.pull_back(w, x, jax.tree.map(lambda s: jnp.ones(s.shape), opened.shapes(w, x))).tolist()
      [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]
    """
    check_model(model)

    def shapes(params: Params, x: Any) -> dict[str, jax.ShapeDtypeStruct]:
        taps = Program(model, params, as_batch(x, only_shapes=True)[0]).named_taps
        return {name: jax.ShapeDtypeStruct(tap.shape, tap.dtype) for name, tap in taps.items()}

    def run(params: Params, x: Any, taps: Taps | None = None) -> TappedRun:
        x, _ = as_batch(x)
        program = Program(model, params, x)
        named = program.named_taps
        feeds = {} if taps is None else by_index("taps", taps, named)

        def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, Array]:
            z = z if feed is None else z + feed
            return z, z

        hooks = Hooks(end=end, reads="emit")
        output, _, emitted = program.run(program.split.parameters, x, hooks, feeds=feeds)
        inputs = {
            name: [emitted[index] for index in dict.fromkeys(i for site in tap.sites for i in site.reads)]
            for name, tap in named.items()
        }
        return TappedRun(output, inputs, {name: emitted[tap.index] for name, tap in named.items()})

    def pull_back(params: Params, x: Any, deltas: Taps) -> Params:
        x, _ = as_batch(x)
        program = Program(model, params, x)
        wanted = by_index("deltas", deltas, program.named_taps)

        def pre_activations(parameters: list[Any]) -> Feeds:
            return program.run(parameters, x, Hooks(end=cut))[2]

        _, transpose = jax.vjp(pre_activations, program.split.parameters)
        return program.split.gradients(transpose(wanted)[0])

    return Tapped(shapes, run, pull_back)


def cut(tap: Tap, z: Array, feed: Any) -> tuple[Array, Array]:
    """Emits z and stops the gradient after it."""
    return jax.lax.stop_gradient(z), z


def by_index(name: str, values: Any, named: dict[str, Tap]) -> Feeds:
    """Returns values by the index of their tap; raises unless each tap has an array of its shape."""
    if not isinstance(values, dict) or values.keys() != named.keys():
        got = list(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{name}: expected a dict with the entries {sorted(named)}, got {got}")
    checked = {}
    for path, tap in named.items():
        value = as_array(f"{name}[{path!r}]", values[path])
        if value.shape != tap.shape:
            raise ValueError(f"{name}[{path!r}]: expected shape {list(tap.shape)}, got {describe(value)}")
        checked[tap.index] = value.astype(tap.dtype)
    return checked
