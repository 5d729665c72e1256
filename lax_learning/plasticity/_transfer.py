"""Tables that were learned in one network go into another (Cristian et al., 2020)."""

from lax_learning._checks import check_instance, check_sequence
from lax_learning.plasticity.networks import KCapNetwork, check_network
from lax_learning.plasticity.tables import Tables


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
      TypeError, ValueError: if a table cannot fit.

    Example:
      >>> import jax
      >>> from lax_learning.plasticity import k_cap_mlp
      >>> small = k_cap_mlp((16, 100, 100, 2), cap=50)
      >>> large = k_cap_mlp((784, 300, 300, 300, 10), cap=100)
      >>> tables = transfer(small.init_tables(jax.random.key(0)), large)
      >>> len(tables.hidden), tables.output.shape
      (1, (2, 2))

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    check_network(network)
    check_instance("tables", tables, Tables, "Tables(hidden, output)")
    check_sequence("tables.hidden", tables.hidden, "a tuple of tables")
    needs_hidden = len(network.table_shapes) > 1
    fitting = Tables(tuple(tables.hidden) if needs_hidden else (), tables.output)
    network.layer_tables(fitting)
    return fitting
