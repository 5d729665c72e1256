"""Recurrent k-cap networks whose synapses read firing histories (Cristian et al., 2020)."""

import math

import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning._checks import MAX_ENTRIES, as_sizes, check_count, check_memory
from lax_learning._precision import promoted
from lax_learning.plasticity._parts import check_made_of, firing, full_mask, random_mask
from lax_learning.plasticity.networks import Drive, KCapNetwork, Response
from lax_learning.plasticity.scheme import Scheme
from lax_learning.plasticity.tables import pre_post
from lax_learning.types import Key

MAX_ROUNDS = math.isqrt(MAX_ENTRIES).bit_length() - 2
"""With one more, tables of `4^(rounds + 1)` entries could not be indexed."""


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
      rounds: number T of rounds after the input's, at most 14: tables have 4^(T + 1) entries.
      edge_probability: of a synapse into or within the graph, 0 to 1; may be traced.
      scheme, fired, w_init, dtype: as of `k_cap_mlp`; the published code has `fired="index"`.

    Example:
      >>> network = k_cap_recurrent((784, 100, 10), cap=50, rounds=2)
      >>> network.table_shapes
      ((8, 8), (8, 2))
    """
    sizes = as_sizes("widths", widths, "sizes of input, graph and output")
    if len(sizes) != 3:
        raise ValueError(f"widths: expected sizes of input, graph and output, got {sizes}")
    num_inputs, width, num_labels = sizes
    shapes = ((num_inputs, width), (width, width), (width, num_labels))
    check_made_of(scheme, w_init, dtype, shapes)
    check_count("rounds", rounds, minimum=0)
    if rounds > MAX_ROUNDS:
        raise ValueError(
            f"rounds: expected at most {MAX_ROUNDS}, whose tables of 2^(rounds + 1) x 2^(rounds + 1) can be "
            f"indexed, got {rounds}"
        )
    fire, num_codes = firing("cap", cap, width, fired), 2 ** (int(rounds) + 1)
    table_shapes = (pre_post.shape(num_codes, num_codes, cap), pre_post.shape(num_codes, 2, cap))
    check_memory("rounds", table_shapes, dtype)
    some = random_mask(edge_probability)

    def respond(weights: tuple[Array, ...], drive: Drive) -> Response:
        graph, output = weights
        _, values, history = drive
        for _ in range(rounds):
            total, graph = promoted(values + drive.z, graph)
            values, who = fire(total @ graph)
            history = 2 * history + who
        values, output = promoted(values, output)
        return Response((history, history), (history,), values @ output)

    def graph_mask(key: Key, shape: tuple[int, int]) -> Array:
        return some(key, shape) & ~jnp.eye(width, dtype=bool)

    return KCapNetwork(
        shapes=shapes,
        masks=(some, graph_mask, full_mask),
        fire=fire,
        respond_to=respond,
        rule=pre_post,
        scheme=scheme,
        table_shapes=table_shapes,
        label_code=0,
        w_init=w_init,
        dtype=dtype,
    )
