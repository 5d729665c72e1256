"""Feed-forward and recurrent k-cap networks (Cristian et al., 2020)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

from lax_learning import _checks as checks
from lax_learning._layers import INITIALISER
from lax_learning.plasticity.networks import KCapNetwork
from lax_learning.plasticity.tables import Scheme, TableRule, pre_post, table_shape

MAX_LAYERS = 1000
MAX_ROUNDS = 14  # with one more, the 4^(rounds + 1) entries of a table could not be indexed


def k_cap_mlp(
    widths: Sequence[int],
    cap: int | Sequence[int],
    *,
    edge_probability: ArrayLike | Sequence[ArrayLike] = 0.5,
    rule: TableRule = pre_post,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    fired: Literal["value", "index"] = "value",
    w_init: Initializer = normal(1.0),  # noqa: B008 (a pure function)
    dtype: DTypeLike = jnp.float32,
) -> KCapNetwork:
    """A feed-forward k-cap network of any depth.

    `a_l = cap_l(relu(a_{l-1} (w_l * mask_l)))`, `logits = a_L w_out`, without biases

    Every hidden layer has a random mask; the output layer is fully connected. The first hidden layer has
    no table: its weights are learned by gradient descent in meta-learning, and random after a transfer.

    Args:
      widths: sizes of the input, of every hidden layer and of the output.
      cap: number of units of a hidden layer that may fire: one for all layers, or one per layer.
      edge_probability: probability, 0 to 1, of each synapse into a hidden layer: one for all layers, or one
        per layer; may be traced.
      rule: the information that selects a synapse's table entry: `pre_post`, `pre_post_count`,
        `pre_post_percent`, `post_count`, or another `TableRule`.
      scheme: how the selected entry changes a synapse.
      fired: "value", a unit fired if its kept value is > 0; or "index", if it is one of the k selected
        units, even with value 0.
      w_init: initialiser of the first layer's weights.
      dtype: dtype of all weights.

    Example:
      >>> import jax
      >>> network = k_cap_mlp((784, 100, 100, 10), cap=50, rule=pre_post)
      >>> state = network.init(jax.random.key(0))
      >>> network.apply(state, jnp.ones((3, 784))).shape, network.table_shapes
      ((3, 10), ((2, 2), (2, 2)))

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    sizes = checks.as_sizes("widths", widths, "sizes of the input, every hidden layer and the output")
    if len(sizes) < 3:
        raise ValueError(f"widths: expected at least an input, a hidden and an output size, got {sizes}")
    hidden = sizes[1:-1]
    caps = _each("cap", cap, len(hidden))
    probabilities = _each("edge_probability", edge_probability, len(hidden))
    shapes = _checked_shapes(sizes, caps, probabilities, fired, scheme, w_init, dtype)
    table_shapes = tuple(table_shape(rule, k, width) for k, width in zip(caps, hidden, strict=True))
    return KCapNetwork(
        shapes, caps, (*probabilities, None), None, table_shapes, fired, rule, scheme, w_init, dtype
    )


def k_cap_recurrent(
    widths: tuple[int, int, int],
    cap: int,
    *,
    rounds: int = 2,
    edge_probability: ArrayLike = 0.5,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    fired: Literal["value", "index"] = "value",
    w_init: Initializer = normal(1.0),  # noqa: B008 (a pure function)
    dtype: DTypeLike = jnp.float32,
) -> KCapNetwork:
    """A recurrent k-cap network whose table entries are selected by the firing histories of units.

    `h_0 = cap(relu(x A))`, then T rounds of `h <- cap(relu((h + x A) W))`, `logits = h w_out`

    `W` is a random graph without self-loops; the drive `x A` also passes through it. The firing history of
    a unit over the T + 1 caps is read as a binary number whose highest bit is the first cap. The tables are
    `[pre history, post history]`, and for the output `[pre history, 0 for the label, 1 for other units]`
    (in feed-forward networks, index 1 is the label).

    Args:
      widths: sizes of the input, of the graph and of the output.
      cap: number of units that may fire in each round.
      rounds: number T of rounds after the first cap, at most 14: tables have 4^(T + 1) entries.
      edge_probability: probability, 0 to 1, of each synapse into or within the graph; may be traced.
      scheme, fired, w_init, dtype: as for `k_cap_mlp`; the published code uses `fired="index"`.

    Example:
      >>> network = k_cap_recurrent((784, 100, 10), cap=50, rounds=2)
      >>> network.table_shapes
      ((8, 8), (8, 2))
    """
    sizes = checks.as_sizes("widths", widths, "sizes of input, graph and output")
    if len(sizes) != 3:
        raise ValueError(f"widths: expected sizes of input, graph and output, got {sizes}")
    num_inputs, width, num_labels = sizes
    caps, probabilities = (cap, cap), (edge_probability, edge_probability)
    layers = (num_inputs, width, width, num_labels)
    shapes = _checked_shapes(layers, caps, probabilities, fired, scheme, w_init, dtype)
    checks.check_count("rounds", rounds, 0, MAX_ROUNDS)
    num_codes = 2 ** (int(rounds) + 1)
    table_shapes = ((num_codes, num_codes), (num_codes, 2))
    checks.check_memory("rounds", table_shapes, dtype)
    return KCapNetwork(
        shapes, caps, (*probabilities, None), rounds, table_shapes, fired, pre_post, scheme, w_init, dtype
    )


def _each(name: str, value: object, count: int) -> tuple:
    """Repeats `value` for every layer, unless it is a sequence with one entry per layer."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{name}: expected one value, or one for each of {count} hidden layers, got {value}")
    return tuple(value)


def _checked_shapes(
    widths: tuple[int, ...], caps: Any, probabilities: Any, fired: Any, scheme: Any, w_init: Any, dtype: Any
) -> tuple[tuple[int, int], ...]:
    """Returns the shapes of all layers; raises if the options do not fit, or weights not into memory."""
    for i, (cap, width) in enumerate(zip(caps, widths[1:-1], strict=True), 1):
        checks.check_count(f"cap of hidden layer {i}", cap, maximum=width)
    for probability in probabilities:
        checks.check_probability("edge_probability", probability)
    checks.check_choice("fired", fired, ("value", "index"))
    checks.check_instance("scheme", scheme, Scheme, "a Scheme")
    checks.check_callable("w_init", w_init, INITIALISER, 3)
    checks.check_floating_dtype("dtype", dtype)
    shapes = tuple(pairwise(widths))
    if len(shapes) > MAX_LAYERS:
        raise ValueError(f"widths: expected at most {MAX_LAYERS} layers, got {len(shapes)}")
    checks.check_memory("widths", shapes, dtype)
    return shapes
