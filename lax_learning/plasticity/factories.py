"""Feed-forward and recurrent k-cap networks (Cristian et al., 2020)."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning import _checks as checks
from lax_learning._precision import promoted
from lax_learning.plasticity._k_cap import top_k_mask
from lax_learning.plasticity.networks import Drive, Fire, KCapNetwork, Response, check_initialiser
from lax_learning.plasticity.tables import Scheme, TableRule, pre_post, table_shape
from lax_learning.types import Key

MAX_LAYERS = 1000
MAX_ROUNDS = math.isqrt(checks.MAX_ENTRIES).bit_length() - 2
"""With one more round, tables of `4^(rounds + 1)` entries could not be indexed."""


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
    widths = checks.as_sizes("widths", widths, "sizes of the input, every hidden layer and the output")
    if len(widths) < 3:
        raise ValueError(f"widths: expected at least an input, a hidden and an output size, got {widths}")
    shapes = tuple(itertools.pairwise(widths))
    _check_options(scheme, w_init, dtype, shapes)
    num_hidden = len(widths) - 2
    caps = _each("cap", cap, num_hidden)
    probabilities = _each("edge_probability", edge_probability, num_hidden)
    first, *fires = (
        _firing(f"cap of hidden layer {i + 1}", k, widths[i + 1], fired) for i, k in enumerate(caps)
    )

    def respond(weights: tuple[Array, ...], drive: Drive) -> Response:
        values, codes = drive.values, [drive.code]
        for fire, w in zip(fires, weights[:-1], strict=True):
            values, code = fire(_product(values, w))
            codes.append(code)
        return Response(tuple(codes), tuple(codes[1:]), _product(values, weights[-1]))

    table_shapes = tuple(table_shape(rule, k, n) for k, n in zip(caps, widths[1:-1], strict=True))
    masks = (*map(_random_mask, probabilities), _full_mask)
    return KCapNetwork(shapes, masks, first, respond, rule, scheme, table_shapes, 1, w_init, dtype)


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
    shapes = ((num_inputs, width), (width, width), (width, num_labels))
    _check_options(scheme, w_init, dtype, shapes)
    checks.check_count("rounds", rounds, minimum=0)
    if rounds > MAX_ROUNDS:
        raise ValueError(
            f"rounds: expected at most {MAX_ROUNDS}, so that tables of 2^(rounds + 1) x 2^(rounds + 1) "
            f"entries can be indexed, got {rounds}"
        )
    fire, num_codes = _firing("cap", cap, width, fired), 2 ** (int(rounds) + 1)
    table_shapes = ((num_codes, num_codes), (num_codes, 2))
    checks.check_memory("rounds", table_shapes, dtype)
    some = _random_mask(edge_probability)

    def respond(weights: tuple[Array, ...], drive: Drive) -> Response:
        graph, output = weights
        _, values, history = drive
        for _ in range(rounds):
            values, who = fire(_product(values + drive.z, graph))
            history = 2 * history + who
        return Response((history, history), (history,), _product(values, output))

    def graph_mask(key: Key, shape: tuple[int, int]) -> Array:
        return some(key, shape) & ~jnp.eye(width, dtype=bool)

    masks = some, graph_mask, _full_mask
    return KCapNetwork(shapes, masks, fire, respond, pre_post, scheme, table_shapes, 0, w_init, dtype)


def _check_options(scheme: Any, w_init: Any, dtype: Any, shapes: Sequence[tuple[int, int]]) -> None:
    """Raises for invalid options, and for weights that do not fit into memory."""
    checks.check_instance("scheme", scheme, Scheme, "a Scheme")
    check_initialiser("w_init", w_init)
    checks.check_floating_dtype("dtype", dtype)
    if len(shapes) > MAX_LAYERS:
        raise ValueError(f"widths: expected at most {MAX_LAYERS} layers, got {len(shapes)}")
    checks.check_memory("widths", shapes, dtype)


def _each(name: str, value: object, count: int) -> tuple:
    """Repeats `value` for every layer, unless it is a sequence with one entry per layer."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{name}: expected one value, or one for each of {count} hidden layers, got {value}")
    return tuple(value)


def _firing(name: str, cap: int, width: int, fired: str) -> Fire:
    """Returns `z -> (cap(relu(z)), fired units)` for a layer; `name` labels `cap` in errors."""
    checks.check_count(name, cap)
    if cap > width:
        raise ValueError(f"{name}: expected at most {width}, the width of its layer, got {cap}")
    checks.check_choice("fired", fired, ("value", "index"))

    def fire(z: Array) -> tuple[Array, Array]:
        values = jax.nn.relu(z)
        chosen = top_k_mask(values, cap)
        who = chosen & (values > 0) if fired == "value" else chosen
        return jnp.where(chosen, values, 0), who.astype(jnp.int32)

    return fire


def _random_mask(edge_probability: ArrayLike) -> Callable[[Key, tuple[int, int]], Array]:
    """Returns `(key, shape) -> mask`, in which each synapse is present with the given probability."""
    checks.check_probability("edge_probability", edge_probability)

    def mask(key: Key, shape: tuple[int, int]) -> Array:
        probability = jnp.asarray(edge_probability)
        if jnp.issubdtype(probability.dtype, jnp.integer):  # 0 or 1
            probability = probability.astype(jnp.float32)
        return jax.random.bernoulli(key, probability, shape)

    return mask


def _full_mask(key: Key, shape: tuple[int, int]) -> Array:
    return jnp.ones(shape, bool)


def _product(values: Array, w: Array) -> Array:
    """Computes `values w` in the promoted dtype of both."""
    values, w = promoted(values, w)
    return values @ w
