"""Feed-forward k-cap networks of any depth (Cristian et al., 2020)."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning._checks import as_sizes
from lax_learning._precision import promoted
from lax_learning.plasticity._parts import check_made_of, firing, full_mask, random_mask, table_shape
from lax_learning.plasticity.networks import Drive, KCapNetwork, Response
from lax_learning.plasticity.scheme import Scheme
from lax_learning.plasticity.tables import TableRule, pre_post


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
    widths = as_sizes("widths", widths, "sizes of the input, every hidden layer and the output")
    if len(widths) < 3:
        raise ValueError(f"widths: expected at least an input, a hidden and an output size, got {widths}")
    shapes = tuple(itertools.pairwise(widths))
    check_made_of(scheme, w_init, dtype, shapes)
    num_hidden = len(widths) - 2
    caps = _each("cap", cap, num_hidden)
    probabilities = _each("edge_probability", edge_probability, num_hidden)
    first, *fires = (
        firing(f"cap of hidden layer {i + 1}", k, widths[i + 1], fired) for i, k in enumerate(caps)
    )

    def respond(weights: tuple[Array, ...], drive: Drive) -> Response:
        values, codes = drive.values, [drive.code]
        for fire, w in zip(fires, weights[:-1], strict=True):
            values, code = fire(_product(values, w))
            codes.append(code)
        return Response(tuple(codes), tuple(codes[1:]), _product(values, weights[-1]))

    return KCapNetwork(
        shapes=shapes,
        masks=(*(random_mask(p) for p in probabilities), full_mask),
        fire=first,
        respond_to=respond,
        rule=rule,
        scheme=scheme,
        table_shapes=tuple(table_shape(rule, 2, 2, k, n) for k, n in zip(caps, widths[1:-1], strict=True)),
        label_code=1,
        w_init=w_init,
        dtype=dtype,
    )


def _product(values: Array, w: Array) -> Array:
    """`values w`, in the dtype that they have together."""
    values, w = promoted(values, w)
    return values @ w


def _each(name: str, value: object, count: int) -> tuple:
    """`value` once for every layer, unless it is a sequence with one entry a layer."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(
            f"{name}: expected one for all or one for each of {count} hidden layers, got {value}"
        )
    return tuple(value)
