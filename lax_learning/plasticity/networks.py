"""k-cap networks whose synapses follow plasticity tables: feed-forward and recurrent."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import check_choice, check_count, check_floating, check_probability, check_shapes
from lax_learning.plasticity.k_cap import top_k_mask
from lax_learning.plasticity.scheme import UPDATES, Scheme
from lax_learning.plasticity.tables import TableRule, Tables, pre_post
from lax_learning.types import Key

State = tuple[dict[str, Array], ...]
"""One dict a layer: `w [in, out]`, and `mask [in, out]`, true where there is a synapse."""


class Response(NamedTuple):
    """What a network does with its input: one sample, or a batch with a leading axis.

    Fields:
      pre: codes of the units before every plastic layer, `[in]` each.
      post: codes of the units behind every plastic layer but the last, `[out]` each.
      logits: `[labels]`.
    """

    pre: tuple[Array, ...]
    post: tuple[Array, ...]
    logits: Array


Fire = Callable[[Array], tuple[Array, Array]]
Respond = Callable[[tuple[Array, ...], Array], Response]


@dataclass(frozen=True)
class KCapNetwork:
    """A network of layers of which the first is fixed during a pass and the others are plastic.

    Made by `k_cap_mlp` and `k_cap_recurrent`. Its state is a tuple with one dict a layer: `w [in, out]`
    and `mask [in, out]`, true where there is a synapse.

    Fields:
      shapes: `(inputs, outputs)` of every layer.
      masks: draws the mask of every layer, `(key, shape) -> mask`.
      respond_to: `(masked weights of the plastic layers, drive) -> Response`.
      rule: which entry of its table a synapse reads.
      scheme: how it changes by what it reads.
      table_shapes: the shapes of the tables that every plastic layer reads, the output layer's at last.
      label_code: the code of the output unit that is the label; the others have `1 - label_code`.
      w_init: initialiser of the first layer.
      dtype: of all weights.
    """

    shapes: tuple[tuple[int, int], ...]
    masks: tuple[Callable[[Key, tuple[int, int]], Array], ...]
    respond_to: Respond
    rule: TableRule
    scheme: Scheme
    table_shapes: tuple[tuple[int, ...], ...]
    label_code: int
    w_init: Initializer
    dtype: DTypeLike

    def init(self, key: Key) -> State:
        """Draws synapses and first-layer weights; plastic weights are at the start of an episode."""
        w_key, mask_key = jax.random.split(key)
        keys = jax.random.split(mask_key, len(self.shapes))
        masks = [draw(k, shape) for draw, k, shape in zip(self.masks, keys, self.shapes, strict=True)]
        first = {"w": self.w_init(w_key, self.shapes[0], self.dtype), "mask": masks[0]}
        start = UPDATES[self.scheme.update].start
        plastic = (jnp.full(shape, start, self.dtype) for shape in self.shapes[1:])
        return (first, *({"w": w, "mask": mask} for w, mask in zip(plastic, masks[1:], strict=True)))

    def reset(self, state: State) -> State:
        """The state at the start of an episode: plastic weights at 0 (additive) or 1 (multiplicative)."""
        start = UPDATES[self.scheme.update].start
        return (state[0], *({**layer, "w": jnp.full_like(layer["w"], start)} for layer in state[1:]))

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

        Returns:
          The tables.

        Raises:
          ValueError: if a shared table is asked for and the layers need other shapes each.
        """
        hidden, output = self.table_shapes[:-1], self.table_shapes[-1]
        if shared:
            if len(set(hidden)) > 1:
                raise ValueError(f"shared: expected hidden layers with tables of one shape, got {hidden}")
            hidden = hidden[:1]
        hidden_key, output_key = jax.random.split(key)
        keys = jax.random.split(hidden_key, max(len(hidden), 1))
        drawn = (hidden_init(k, shape, self.dtype) for k, shape in zip(keys, hidden, strict=False))
        return Tables(tuple(drawn), output_init(output_key, output, self.dtype))

    def layer_tables(self, tables: Tables) -> tuple[Array, ...]:
        """The table of every plastic layer, the output layer's at last; checks that they fit."""
        num_hidden = len(self.table_shapes) - 1
        hidden = tuple(tables.hidden) * num_hidden if len(tables.hidden) == 1 else tuple(tables.hidden)
        if len(hidden) != num_hidden:
            raise ValueError(
                f"tables.hidden: expected one table for all or one for each of {num_hidden} plastic hidden "
                f"layers, got {len(tables.hidden)}"
            )
        names = [f"tables.hidden for layer {i + 1}" for i in range(num_hidden)]
        check_shapes([*names, "tables.output"], (*hidden, tables.output), self.table_shapes)
        return (*hidden, tables.output)

    def drive(self, state: State, x: ArrayLike) -> Float[Array, "*batch width"]:
        """What the fixed first layer makes of `x [*batch, inputs]`, for all samples at once."""
        x = jnp.asarray(x)
        check_floating("x", x)
        num_inputs = self.shapes[0][0]
        if x.ndim == 0 or x.shape[-1] != num_inputs:
            raise ValueError(f"x: expected shape [..., {num_inputs}], got {list(x.shape)}")
        return x @ masked(state[0])

    def respond(self, state: State, drive: Float[Array, "*batch width"]) -> Response:
        """Runs the plastic layers on the drive of one sample or of many."""
        return self.respond_to(tuple(masked(layer) for layer in state[1:]), drive)

    def apply(self, state: State, x: ArrayLike) -> Float[Array, "*batch labels"]:
        """The logits for `x [*batch, inputs]`, without any change; gradients flow through the kept values."""
        self.check_state(state)
        return self.respond(state, self.drive(state, x)).logits

    def check_state(self, state: State) -> None:
        """Raises unless the state has the shapes of this network."""
        if len(state) != len(self.shapes):
            raise ValueError(f"state: expected {len(self.shapes)} layers, got {len(state)}")
        for entry in ("w", "mask"):
            names = [f"state[{i}][{entry!r}]" for i in range(len(state))]
            check_shapes(names, [layer[entry] for layer in state], self.shapes)


def masked(layer: dict[str, Array]) -> Array:
    """The weights of a layer, 0 where there is no synapse."""
    return jnp.where(layer["mask"], layer["w"], 0)


def _firing(cap: int, fired: str) -> Fire:
    """`z -> (cap(relu(z)), who fired)`."""

    def fire(z: Array) -> tuple[Array, Array]:
        values = jax.nn.relu(z)
        chosen = top_k_mask(values, cap)
        who = chosen & (values > 0) if fired == "value" else chosen
        return jnp.where(chosen, values, 0), who.astype(jnp.int32)

    return fire


def _random_mask(edge_probability: ArrayLike) -> Callable[[Key, tuple[int, int]], Array]:
    return lambda key, shape: jax.random.bernoulli(key, edge_probability, shape)


def _full_mask(key: Key, shape: tuple[int, int]) -> Array:
    return jnp.ones(shape, bool)


def _each(name: str, value: object, count: int) -> tuple:
    """`value` once for every layer, unless it is a sequence with one entry a layer."""
    if not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(
            f"{name}: expected one for all or one for each of {count} hidden layers, got {value}"
        )
    return tuple(value)


def _check_cap(name: str, cap: int, width: int) -> None:
    check_count(name, cap)
    if cap > width:
        raise ValueError(f"{name}: expected at most {width}, the width of its layer, got {cap}")


def k_cap_mlp(
    widths: Sequence[int],
    cap: int | Sequence[int],
    *,
    edge_probability: ArrayLike | Sequence[ArrayLike] = 0.5,
    rule: TableRule = pre_post,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    fired: str = "value",
    w_init: Initializer = normal(1.0),  # noqa: B008 (a pure function)
    dtype: DTypeLike = jnp.float32,
) -> KCapNetwork:
    """A feed-forward k-cap network of any depth.

    `a_l = cap_l(relu(a_{l-1} (w_l * mask_l)))`, `logits = a_L w_out`, without biases

    Every hidden layer has a random mask, the output layer is fully connected. The first hidden layer has
    no table: its weights are learned upstream by gradient descent and random downstream.

    Args:
      widths: sizes of the input, of every hidden layer and of the output.
      cap: how many units of a hidden layer may fire: one number for all, or one a layer.
      edge_probability: of a synapse into a hidden layer, 0 to 1: one for all, or one a layer; may be
        traced.
      rule: which entry of its table a synapse reads: `pre_post`, `pre_post_count`, `pre_post_percent`,
        `post_count`, or another `TableRule`.
      scheme: how synapses change by what they read.
      fired: "value", a unit fired if its kept value is > 0; or "index", if it is one of the cap's k, even
        at value 0.
      w_init: initialiser of the first layer's weights.
      dtype: of all weights.

    Returns:
      The network.

    Raises:
      TypeError, ValueError: for fewer than one hidden layer, sizes that are no positive ints, a cap larger
        than its layer, a probability outside 0..1, or an unknown `fired`.

    Example:
      >>> network = k_cap_mlp((784, 100, 100, 10), cap=50, rule=pre_post)
      >>> state = network.init(jax.random.key(0))
      >>> network.apply(state, jnp.ones((3, 784))).shape, network.table_shapes
      ((3, 10), ((2, 2), (2, 2)))

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    widths = tuple(widths)
    if len(widths) < 3:
        raise ValueError(f"widths: expected an input, a hidden and an output size at least, got {widths}")
    for i, width in enumerate(widths):
        check_count(f"widths[{i}]", width)
    num_hidden = len(widths) - 2
    caps = _each("cap", cap, num_hidden)
    probabilities = _each("edge_probability", edge_probability, num_hidden)
    for i, (k, p) in enumerate(zip(caps, probabilities, strict=True)):
        _check_cap(f"cap of hidden layer {i + 1}", k, widths[i + 1])
        check_probability("edge_probability", p)
    check_choice("fired", fired, ("value", "index"))
    first, *fires = (_firing(k, fired) for k in caps)

    def respond(weights: tuple[Array, ...], drive: Array) -> Response:
        values, code = first(drive)
        codes = [code]
        for fire, w in zip(fires, weights[:-1], strict=True):
            values, code = fire(values @ w)
            codes.append(code)
        return Response(tuple(codes), tuple(codes[1:]), values @ weights[-1])

    return KCapNetwork(
        shapes=tuple(itertools.pairwise(widths)),
        masks=(*(_random_mask(p) for p in probabilities), _full_mask),
        respond_to=respond,
        rule=rule,
        scheme=scheme,
        table_shapes=tuple(rule.shape(2, 2, k) for k in caps),
        label_code=1,
        w_init=w_init,
        dtype=dtype,
    )


def k_cap_recurrent(
    widths: tuple[int, int, int],
    cap: int,
    *,
    rounds: int = 2,
    edge_probability: ArrayLike = 0.5,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    fired: str = "value",
    w_init: Initializer = normal(1.0),  # noqa: B008 (a pure function)
    dtype: DTypeLike = jnp.float32,
) -> KCapNetwork:
    """A recurrent k-cap network whose synapses read the firing histories of their units.

    `h_0 = cap(relu(x A))`, then T rounds `h <- cap(relu((h + x A) W))`, `logits = h w_out`

    A random graph `W` without self-loops; the drive `x A` passes through it too. The history of a unit
    over the T + 1 caps is read as a binary number, the first cap its highest bit. The tables are
    `[pre history, post history]`, and for the output `[pre history, 0 if it is the label, else 1]` (in
    feed-forward networks index 1 is the label).

    Args:
      widths: sizes of the input, of the graph and of the output.
      cap: how many units may fire at a time.
      rounds: number T of rounds after the input's.
      edge_probability: of a synapse into or within the graph, 0 to 1; may be traced.
      scheme: how synapses change by what they read.
      fired: "value", a unit fired if its kept value is > 0; or "index", if it is one of the cap's k, even
        at value 0, as in the published code.
      w_init: initialiser of the input weights `A [inputs, width]`.
      dtype: of all weights.

    Returns:
      The network.

    Raises:
      TypeError, ValueError: for sizes that are no three positive ints, a cap larger than the graph, fewer
        than 0 rounds, a probability outside 0..1, or an unknown `fired`.

    Example:
      >>> network = k_cap_recurrent((784, 100, 10), cap=50, rounds=2)
      >>> network.table_shapes
      ((8, 8), (8, 2))

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    if len(widths) != 3:
        raise ValueError(f"widths: expected sizes of input, graph and output, got {widths}")
    for i, n in enumerate(widths):
        check_count(f"widths[{i}]", n)
    num_inputs, width, num_labels = widths
    _check_cap("cap", cap, width)
    check_count("rounds", rounds, minimum=0)
    check_probability("edge_probability", edge_probability)
    check_choice("fired", fired, ("value", "index"))
    fire, num_codes = _firing(cap, fired), 2 ** (rounds + 1)

    def respond(weights: tuple[Array, ...], drive: Array) -> Response:
        graph, output = weights
        values, history = fire(drive)
        for _ in range(rounds):
            values, who = fire((values + drive) @ graph)
            history = 2 * history + who
        return Response((history, history), (history,), values @ output)

    def graph_mask(key: Key, shape: tuple[int, int]) -> Array:
        return _random_mask(edge_probability)(key, shape) & ~jnp.eye(width, dtype=bool)

    return KCapNetwork(
        shapes=((num_inputs, width), (width, width), (width, num_labels)),
        masks=(_random_mask(edge_probability), graph_mask, _full_mask),
        respond_to=respond,
        rule=pre_post,
        scheme=scheme,
        table_shapes=(pre_post.shape(num_codes, num_codes, cap), pre_post.shape(num_codes, 2, cap)),
        label_code=0,
        w_init=w_init,
        dtype=dtype,
    )


def transfer(tables: Tables, network: KCapNetwork) -> Tables:
    """Copies tables into a network of other width, depth, inputs or labels.

    A table for all hidden layers goes into a network of any depth; tables one a layer only into one of
    the same depth. What a table counts must fit: that of `pre_post_count` and `post_count` has an axis of
    the length of the cap.

    Args:
      tables: as learned upstream.
      network: the network they are for.

    Returns:
      The tables for that network.

    Raises:
      ValueError: if a table cannot fit.

    Example:
      >>> small = k_cap_mlp((16, 100, 100, 2), cap=50)
      >>> large = k_cap_mlp((784, 300, 300, 300, 10), cap=100)
      >>> tables = transfer(small.init_tables(jax.random.key(0)), large)
      >>> len(tables.hidden), tables.output.shape
      (1, (2, 2))

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    needs_hidden = len(network.table_shapes) > 1
    fitting = Tables(tuple(tables.hidden) if needs_hidden else (), tables.output)
    network.layer_tables(fitting)
    return fitting
