"""Feed-forward and recurrent k-cap networks whose synapses change by plasticity tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning._layers import INITIALISER
from lax_learning._precision import promoted, raised
from lax_learning.plasticity._k_cap import top_k_mask
from lax_learning.plasticity.tables import Scheme, TableRule, Tables
from lax_learning.types import Key

State = tuple[dict[str, Array], ...]


class Response(NamedTuple):
    """Response of a network to one sample, or to a batch with a leading axis.

    Fields:
      pre: codes of the presynaptic units of every plastic layer, `[in]` each.
      post: codes of the postsynaptic units of every plastic layer except the last, `[out]` each.
      logits: `[labels]`.
    """

    pre: tuple[Array, ...]
    post: tuple[Array, ...]
    logits: Array


class Drive(NamedTuple):
    """Output of the fixed first layer: pre-activations, kept values, fired units; `[*batch, width]` each."""

    z: Array
    values: Array
    code: Array


@dataclass(frozen=True)
class KCapNetwork:
    """A network whose first layer is fixed during a pass and whose other layers are plastic.

    Made by `k_cap_mlp` and `k_cap_recurrent`. Its state is a tuple with one dict per layer: `w [in, out]`
    and `mask [in, out]`, true where there is a synapse.

    Fields:
      shapes: `(inputs, outputs)` of every layer.
      caps: cap of every hidden layer.
      edge_probabilities: probability of a synapse in every layer; None if all exist.
      rounds: rounds of a recurrent network; None for a feed-forward one.
      table_shapes: the table shape of every plastic layer, the output layer last.
      fired, rule, scheme, w_init, dtype: as for `k_cap_mlp`.
    """

    shapes: tuple[tuple[int, int], ...]
    caps: tuple[int, ...]
    edge_probabilities: tuple[ArrayLike | None, ...]
    rounds: int | None
    table_shapes: tuple[tuple[int, ...], ...]
    fired: Literal["value", "index"]
    rule: TableRule
    scheme: Scheme
    w_init: Initializer
    dtype: DTypeLike

    def init(self, key: Key) -> State:
        """Draws synapses and first-layer weights; plastic weights are those of `reset`."""
        checks.check_key("key", key)
        w_key, mask_key = jax.random.split(key)
        keys = jax.random.split(mask_key, len(self.shapes))
        masks = list(map(_random_mask, keys, self.shapes, self.edge_probabilities))
        if self.rounds is not None:
            masks[1] &= ~jnp.eye(self.shapes[1][0], dtype=bool)
        first = _drawn("w_init", self.w_init, self.dtype, w_key, self.shapes[0])
        plastic = (jnp.full(shape, self.scheme.start, self.dtype) for shape in self.shapes[1:])
        return tuple({"w": w, "mask": mask} for w, mask in zip((first, *plastic), masks, strict=True))

    def reset(self, state: State) -> State:
        """Resets plastic weights to the start of an episode: 0 (additive) or 1 (multiplicative)."""
        self.check_state(state)
        return with_weights(state, [jnp.full_like(layer["w"], self.scheme.start) for layer in state[1:]])

    def init_tables(
        self,
        key: Key,
        *,
        shared: bool = True,
        hidden_init: Initializer = constant(0.4),  # noqa: B008 (a pure function)
        output_init: Initializer = zeros,
    ) -> Tables:
        """Draws tables that fit the network.

        Args:
          key: PRNG key for the initialisers.
          shared: whether all plastic hidden layers share one table; otherwise each has its own.
          hidden_init: initialiser of the hidden tables, as in `jax.nn.initializers`; the published code
            starts at 0.4, an earlier version at N(0, 1).
          output_init: initialiser of the output table.
        """
        checks.check_key("key", key)
        checks.check_flag("shared", shared)
        checks.check_callable("hidden_init", hidden_init, INITIALISER, 3)
        checks.check_callable("output_init", output_init, INITIALISER, 3)
        *hidden, output = self.table_shapes
        if shared:
            if len(set(hidden)) > 1:
                raise ValueError(f"shared: expected hidden tables of the same shape, got {hidden}")
            hidden = hidden[:1]
        hidden_key, output_key = jax.random.split(key)
        keys = jax.random.split(hidden_key, max(len(hidden), 1))
        draw_hidden = partial(_drawn, "hidden_init", hidden_init, self.dtype)
        return Tables(
            tuple(map(draw_hidden, keys, hidden)),
            _drawn("output_init", output_init, self.dtype, output_key, output),
        )

    def layer_tables(self, tables: Tables) -> tuple[Array, ...]:
        """Returns the table of every plastic layer, the output layer last; raises unless the shapes fit."""
        checks.check_instance("tables", tables, Tables, "Tables(hidden, output)")
        checks.check_sequence("tables.hidden", tables.hidden, "a tuple of tables")
        number = len(self.table_shapes) - 1
        hidden = tuple(tables.hidden) * (number if len(tables.hidden) == 1 else 1)
        if len(hidden) != number:
            expected = f"one table, or one for each of {number} plastic hidden layers"
            raise ValueError(f"tables.hidden: expected {expected}, got {len(tables.hidden)}")
        names = [*(f"tables.hidden for layer {i + 1}" for i in range(number)), "tables.output"]
        found = tuple(map(checks.as_floating, names, (*hidden, tables.output)))
        checks.check_shapes(names, found, self.table_shapes)
        return found

    def drive(self, state: State, x: ArrayLike) -> Drive:
        """Computes the output of the fixed first layer for `x [*batch, inputs]`, for all samples at once."""
        self.check_state(state)
        x = checks.as_floating("x", x)
        checks.check_shapes(["x"], [x], [(*x.shape[:-1], self.shapes[0][0])])
        z = _product(x, _masked(state[0]))
        return Drive(z, *self._fire(z, self.caps[0]))

    def synapses(self, state: State) -> tuple[Array, ...]:
        """Returns the weights of the plastic layers, 0 where there is no synapse."""
        return tuple(map(_masked, state[1:]))

    def respond_to(self, synapses: tuple[Array, ...], drive: Drive) -> Response:
        """Runs the plastic layers on the drive of one sample or a batch."""
        *hidden, output = synapses
        _, values, code = drive
        if self.rounds is None:
            codes = [code]
            for w, cap in zip(hidden, self.caps[1:], strict=True):
                values, code = self._fire(_product(values, w), cap)
                codes.append(code)
            return Response(tuple(codes), tuple(codes[1:]), _product(values, output))
        for _ in range(self.rounds):
            values, fired = self._fire(_product(values + drive.z, hidden[0]), self.caps[0])
            code = 2 * code + fired
        return Response((code, code), (code,), _product(values, output))

    def _fire(self, z: Array, cap: int) -> tuple[Array, Array]:
        """Returns `cap(relu(z))`, and 1 for units that fired."""
        values = jax.nn.relu(z)
        chosen = top_k_mask(values, cap)
        fired = chosen & (values > 0) if self.fired == "value" else chosen
        return jnp.where(chosen, values, 0), fired.astype(jnp.int32)

    def apply(self, state: State, x: ArrayLike) -> Float[Array, "*batch labels"]:
        """Returns logits for `x [*batch, inputs]` without learning; gradients flow through kept values."""
        drive = self.drive(state, x)
        return self.respond_to(self.synapses(state), drive).logits

    def check_state(self, state: State) -> None:
        """Raises unless the entries, shapes and dtypes of the state fit this network."""
        checks.check_sequence("state", state, "a tuple with one dict per layer")
        if len(state) != len(self.shapes):
            raise ValueError(f"state: expected {len(self.shapes)} layers, got {len(state)}")
        for i, (layer, shape) in enumerate(zip(state, self.shapes, strict=True)):
            if not isinstance(layer, Mapping) or not {"w", "mask"} <= set(layer):
                got = sorted(layer) if isinstance(layer, Mapping) else checks.describe(layer)
                raise ValueError(f"state[{i}]: expected a dict with the entries 'w' and 'mask', got {got}")
            w, mask = layer["w"], layer["mask"]
            checks.check_floating(f"state[{i}]['w']", w)
            if getattr(mask, "dtype", None) != jnp.bool_:
                raise TypeError(f"state[{i}]['mask']: expected booleans, got {checks.describe(mask)}")
            checks.check_shapes([f"state[{i}]['w']", f"state[{i}]['mask']"], [w, mask], [shape] * 2)


def check_network(network: Any) -> None:
    """Raises TypeError unless `network` is a `KCapNetwork`."""
    expected = "a KCapNetwork, from k_cap_mlp or k_cap_recurrent"
    checks.check_instance("network", network, KCapNetwork, expected)


def transfer(tables: Tables, network: KCapNetwork) -> Tables:
    """Transfers learned tables to a network with other widths, depth, inputs or labels.

    A table shared by all hidden layers fits a network of any depth; tables per layer fit the same depth
    only. The length of a count axis must fit too: cap + 1 for `pre_post_count` and `post_count`. Raises
    ValueError otherwise.

    Example:
      >>> from lax_learning.plasticity import k_cap_mlp
      >>> small = k_cap_mlp((16, 100, 100, 2), cap=50)
      >>> large = k_cap_mlp((784, 300, 300, 300, 10), cap=100)
      >>> tables = transfer(small.init_tables(jax.random.key(0)), large)
      >>> len(tables.hidden), tables.output.shape
      (1, (2, 2))
    """
    check_network(network)
    checks.check_instance("tables", tables, Tables, "Tables(hidden, output)")
    fitting = tables if len(network.table_shapes) > 1 else Tables((), tables.output)
    network.layer_tables(fitting)
    return fitting


def with_weights(state: State, weights: Iterable[Array], first: int = 1) -> State:
    """Replaces the weights of layers, from the first plastic one on; containers keep their types."""
    layers, structure = jax.tree.flatten(state, is_leaf=lambda node: isinstance(node, Mapping))
    for i, w in enumerate(weights, first):
        layers[i] = type(layers[i])({**layers[i], "w": w})
    return structure.unflatten(layers)


def _random_mask(key: Key, shape: tuple[int, int], probability: ArrayLike | None) -> Array:
    if probability is None:
        return jnp.ones(shape, bool)
    return jax.random.bernoulli(key, jnp.asarray(probability, raised(probability)), shape)


def _drawn(name: str, init: Initializer, dtype: DTypeLike, key: Key, shape: tuple[int, ...]) -> Array:
    """Draws from an initialiser and casts to `dtype`; raises unless it returns floats of this shape."""
    values = checks.as_floating(f"{name}(key, shape, dtype)", init(key, shape, dtype))
    checks.check_shapes([f"{name}(key, shape, dtype)"], [values], [shape])
    return values.astype(dtype)


def _masked(layer: Mapping[str, Array]) -> Array:
    return jnp.where(layer["mask"], layer["w"], 0)


def _product(values: Array, w: Array) -> Array:
    """Computes `values w` in the promoted dtype of both."""
    values, w = promoted(values, w)
    return values @ w
