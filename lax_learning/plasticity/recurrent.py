"""Recurrent k-cap networks whose synapses read firing histories (Cristian et al., 2020)."""

import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_count
from lax_learning.plasticity._parts import firing, full_mask, random_mask
from lax_learning.plasticity.networks import Drive, KCapNetwork, Response
from lax_learning.plasticity.scheme import Scheme
from lax_learning.plasticity.tables import pre_post
from lax_learning.types import Key


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
    check_count("rounds", rounds, minimum=0)
    fire, num_codes = firing("cap", cap, width, fired), 2 ** (rounds + 1)
    some = random_mask(edge_probability)

    def respond(weights: tuple[Array, ...], drive: Drive) -> Response:
        graph, output = weights
        _, values, history = drive
        for _ in range(rounds):
            values, who = fire((values + drive.z) @ graph)
            history = 2 * history + who
        return Response((history, history), (history,), values @ output)

    def graph_mask(key: Key, shape: tuple[int, int]) -> Array:
        return some(key, shape) & ~jnp.eye(width, dtype=bool)

    return KCapNetwork(
        shapes=((num_inputs, width), (width, width), (width, num_labels)),
        masks=(some, graph_mask, full_mask),
        fire=fire,
        respond_to=respond,
        rule=pre_post,
        scheme=scheme,
        table_shapes=(pre_post.shape(num_codes, num_codes, cap), pre_post.shape(num_codes, 2, cap)),
        label_code=0,
        w_init=w_init,
        dtype=dtype,
    )
