"""k-cap networks whose synapses follow plasticity tables: feed-forward and recurrent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning._precision import promoted
from lax_learning._structure import mapping_like, sequence_like
from lax_learning.plasticity.tables import UPDATES, Scheme, TableRule, Tables
from lax_learning.types import Key

State = tuple[dict[str, Array], ...]


class Response(NamedTuple):
    """Response of a network to its input: one sample, or a batch with a leading axis.

    Fields:
      pre: codes of the units before every plastic layer, `[in]` each.
      post: codes of the units behind every plastic layer but the last, `[out]` each.
      logits: `[labels]`.
    """

    pre: tuple[Array, ...]
    post: tuple[Array, ...]
    logits: Array


class Drive(NamedTuple):
    """Output of the fixed first layer: pre-activations, kept values and who fired, `[*batch, width]` each."""

    z: Array
    values: Array
    code: Array


Fire = Callable[[Array], tuple[Array, Array]]
Respond = Callable[[tuple[Array, ...], Drive], Response]


@dataclass(frozen=True)
class KCapNetwork:
    """A network whose first layer is fixed during a pass and whose other layers are plastic.

    Made by `k_cap_mlp` and `k_cap_recurrent`. Its state is a tuple with one dict a layer: `w [in, out]`
    and `mask [in, out]`, true where there is a synapse.

    Fields:
      shapes: `(inputs, outputs)` of every layer.
      masks: draws the mask of every layer, `(key, shape) -> mask`.
      fire: the first layer's cap, `z -> (values, who fired)`.
      respond_to: `(masked weights of the plastic layers, Drive) -> Response`.
      rule: selects the entry of its table that a synapse reads.
      scheme: how a synapse changes by that entry.
      table_shapes: the shapes of the tables that every plastic layer reads, the output layer's last.
      label_code: the code of the output unit that is the label; the others have `1 - label_code`.
      w_init: initialiser of the first layer.
      dtype: of all weights.
    """

    shapes: tuple[tuple[int, int], ...]
    masks: tuple[Callable[[Key, tuple[int, int]], Array], ...]
    fire: Fire
    respond_to: Respond
    rule: TableRule
    scheme: Scheme
    table_shapes: tuple[tuple[int, ...], ...]
    label_code: int
    w_init: Initializer
    dtype: DTypeLike

    def init(self, key: Key) -> State:
        """Draws synapses and first-layer weights; plastic weights are at the start of an episode."""
        checks.check_key("key", key)
        w_key, mask_key = jax.random.split(key)
        keys = jax.random.split(mask_key, len(self.shapes))
        masks = [draw(k, shape) for draw, k, shape in zip(self.masks, keys, self.shapes, strict=True)]
        first = {"w": drawn("w_init", self.w_init, w_key, self.shapes[0], self.dtype), "mask": masks[0]}
        start = UPDATES[self.scheme.update].start
        plastic = (jnp.full(shape, start, self.dtype) for shape in self.shapes[1:])
        return (first, *({"w": w, "mask": mask} for w, mask in zip(plastic, masks[1:], strict=True)))

    def reset(self, state: State) -> State:
        """The state at the start of an episode: plastic weights at 0 (additive) or 1 (multiplicative)."""
        self.check_state(state)
        start = UPDATES[self.scheme.update].start
        reset = (mapping_like(layer, w=jnp.full_like(layer["w"], start)) for layer in state[1:])
        return sequence_like(state, (state[0], *reset))

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
          key: for the initialisers.
          shared: one table for all plastic hidden layers, or else one a layer.
          hidden_init: of the hidden tables, as in `jax.nn.initializers`; the published code starts at 0.4,
            an earlier one at N(0, 1).
          output_init: of the output table.
        """
        checks.check_key("key", key)
        checks.check_flag("shared", shared)
        check_initialiser("hidden_init", hidden_init)
        check_initialiser("output_init", output_init)
        hidden, output = self.table_shapes[:-1], self.table_shapes[-1]
        if shared:
            if len(set(hidden)) > 1:
                raise ValueError(f"shared: expected hidden layers with tables of one shape, got {hidden}")
            hidden = hidden[:1]
        hidden_key, output_key = jax.random.split(key)
        keys = jax.random.split(hidden_key, max(len(hidden), 1))
        tables = tuple(
            drawn("hidden_init", hidden_init, k, shape, self.dtype)
            for k, shape in zip(keys, hidden, strict=False)
        )
        return Tables(tables, drawn("output_init", output_init, output_key, output, self.dtype))

    def layer_tables(self, tables: Tables) -> tuple[Array, ...]:
        """The table of every plastic layer, the output layer's last; raises unless they fit."""
        checks.check_instance("tables", tables, Tables, "Tables(hidden, output)")
        checks.check_sequence("tables.hidden", tables.hidden, "a tuple of tables")
        number = len(self.table_shapes) - 1
        hidden = tuple(tables.hidden) * (number if len(tables.hidden) == 1 else 1)
        if len(hidden) != number:
            expected = f"one table for all or one for each of {number} plastic hidden layers"
            raise ValueError(f"tables.hidden: expected {expected}, got {len(tables.hidden)}")
        names = [*(f"tables.hidden for layer {i + 1}" for i in range(number)), "tables.output"]
        found = tuple(map(checks.as_floating, names, (*hidden, tables.output)))
        checks.check_shapes(names, found, self.table_shapes)
        return found

    def drive(self, state: State, x: ArrayLike) -> Drive:
        """Computes the output of the fixed first layer for `x [*batch, inputs]`, for all samples at once."""
        self.check_state(state)
        x = checks.as_floating("x", x)
        num_inputs = self.shapes[0][0]
        if x.ndim == 0 or x.shape[-1] != num_inputs:
            raise ValueError(f"x: expected shape [..., {num_inputs}], got {list(x.shape)}")
        x, w = promoted(x, masked(state[0]))
        z = x @ w
        return Drive(z, *self.fire(z))

    def respond(self, state: State, drive: Drive) -> Response:
        """Runs the plastic layers on the drive of one sample or of many."""
        self.check_state(state)
        checks.check_instance("drive", drive, Drive, "a Drive, from network.drive")
        return self.respond_to(self.synapses(state), drive)

    def synapses(self, state: State) -> tuple[Array, ...]:
        """The weights of the plastic layers, 0 where there is no synapse."""
        return tuple(masked(layer) for layer in state[1:])

    def apply(self, state: State, x: ArrayLike) -> Float[Array, "*batch labels"]:
        """The logits for `x [*batch, inputs]`, without any change; gradients flow through the kept values."""
        return self.respond(state, self.drive(state, x)).logits

    def check_state(self, state: State) -> None:
        """Raises unless the state has the entries, shapes and kinds of dtypes of this network."""
        checks.check_sequence("state", state, "a tuple with a dict a layer")
        if len(state) != len(self.shapes):
            raise ValueError(f"state: expected {len(self.shapes)} layers, got {len(state)}")
        for i, layer in enumerate(state):
            if not isinstance(layer, Mapping) or not {"w", "mask"} <= set(layer):
                got = sorted(layer) if isinstance(layer, Mapping) else checks.describe(layer)
                raise ValueError(f"state[{i}]: expected a dict with the entries 'w' and 'mask', got {got}")
            checks.check_floating(f"state[{i}]['w']", layer["w"])
            if getattr(layer["mask"], "dtype", None) != jnp.bool_:
                raise TypeError(
                    f"state[{i}]['mask']: expected booleans, got {checks.describe(layer['mask'])}"
                )
        for entry in ("w", "mask"):
            names = [f"state[{i}][{entry!r}]" for i in range(len(state))]
            checks.check_shapes(names, [layer[entry] for layer in state], self.shapes)


def check_network(network: Any) -> None:
    """Raises TypeError unless it is a `KCapNetwork`."""
    expected = "a KCapNetwork, from k_cap_mlp or k_cap_recurrent"
    checks.check_instance("network", network, KCapNetwork, expected)


def transfer(tables: Tables, network: KCapNetwork) -> Tables:
    """Copies tables, learned upstream, into a network of other width, depth, inputs or labels.

    A table for all hidden layers goes into a network of any depth; tables one a layer only into one of
    the same depth. What a table counts must fit: that of `pre_post_count` and `post_count` has an axis of
    the length of the cap.

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
    checks.check_sequence("tables.hidden", tables.hidden, "a tuple of tables")
    fitting = Tables(tuple(tables.hidden) if len(network.table_shapes) > 1 else (), tables.output)
    network.layer_tables(fitting)
    return fitting


def check_initialiser(name: str, init: Any) -> None:
    """Raises TypeError unless it is a function of a key, a shape and a dtype."""
    checks.check_function(
        name, init, "an initialiser (key, shape, dtype), of jax.nn.initializers", *[None] * 3
    )


def drawn(name: str, init: Initializer, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draws from an initialiser, in its dtype; raises unless that is a floating array of the shape."""
    values = checks.as_floating(f"{name}(key, shape, dtype)", init(key, shape, dtype))
    checks.check_shapes([f"{name}(key, shape, dtype)"], [values], [shape])
    return values.astype(dtype)


def masked(layer: dict[str, Array]) -> Array:
    """The weights of a layer, 0 where there is no synapse."""
    return jnp.where(layer["mask"], layer["w"], 0)
