"""Online learning by plasticity tables: one pass over the samples, with a change after each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Int

from lax_learning import _checks as checks
from lax_learning._precision import raised
from lax_learning.plasticity.networks import Drive, KCapNetwork, Response, State, check_network, with_weights
from lax_learning.plasticity.tables import Tables
from lax_learning.types import Dynamics

MAX_SELECTS = 64
"""Maximum number of codes to read by selects, each compiled separately; with more, entries are gathered."""


Synapses = tuple[Array, ...]
"""The weights of the plastic layers, 0 where there is no synapse."""


class Diagnostics(NamedTuple):
    """Diagnostics of a sample before the network changes; `plastic_pass` stacks them over samples.

    Fields:
      prediction: the predicted label; -1, always wrong, if a logit is NaN.
      updated: whether the sample changed the synapses.
      response: the codes of all units, and the logits. Under `jit`, unused parts cost nothing.
    """

    prediction: Int[Array, "*samples"]
    updated: Bool[Array, "*samples"]
    response: Response


class Change(NamedTuple):
    """Changes `rows[pre_i, j]` of a layer's synapses: `pre [in]`, 0 if unused, and `rows [codes, out]`."""

    pre: Array
    rows: Array


def read_changes(
    network: KCapNetwork, tables: Tables, state: State, response: Response, label: Array
) -> tuple[tuple[Change, ...], Diagnostics]:
    """Returns the changes of the plastic layers for the response to a sample, and its diagnostics."""
    rule, scheme = network.rule, network.scheme
    undefined = jnp.isnan(response.logits).any()
    prediction = jnp.where(undefined, -1, jnp.argmax(response.logits).astype(jnp.int32))
    labels = jnp.arange(network.shapes[-1][1], dtype=jnp.int32)
    learns = prediction != label if scheme.samples == "misclassified" else jnp.ones((), bool)
    output_row = learns if scheme.rows == "all" else learns & ((labels == label) | (labels == prediction))
    label_code = 1 if network.rounds is None else 0
    post = (*response.post, jnp.where(labels == label, label_code, 1 - label_code))
    gates = (*(learns for _ in response.post), output_row)
    changes = []
    layers = zip(network.layer_tables(tables), response.pre, post, state[1:], gates, strict=True)
    for table, pre, code, layer, gate in layers:
        steps = jnp.asarray(scheme.step_size, table.dtype) * table
        rows = jnp.where(gate, rule.rows(steps, pre, code, layer["mask"]), 0)
        changes.append(Change(pre if rule.reads_pre else jnp.zeros_like(pre), rows))
    return tuple(changes), Diagnostics(prediction, learns, response)


def applied(network: KCapNetwork, w: Array, change: Array) -> Array:
    """Applies a change in float32 or wider and returns weights in their own dtype."""
    wide = raised(w, change)
    before, change = w.astype(wide), change.astype(wide)
    after = before + change if network.scheme.update == "additive" else before * (1 + change)
    return after.astype(w.dtype)


def _change(network: KCapNetwork, state: State, synapses: Synapses, changes: tuple[Change, ...]) -> Synapses:
    """Applies changes, expanded by one select per code; with many codes, by a gather."""
    after = []
    for layer, w, change in zip(state[1:], synapses, changes, strict=True):
        if len(change.rows) > MAX_SELECTS:
            full = change.rows[change.pre]
        else:
            full = change.rows[0]
            for code in range(1, len(change.rows)):
                full = jnp.where(change.pre[:, None] == code, change.rows[code], full)
        after.append(applied(network, w, jnp.where(layer["mask"], full, 0)))
    return tuple(after)


def _joined(state: State, synapses: Synapses) -> State:
    """Returns the state with these synapses; weights where there is no synapse are kept."""
    layers = zip(state[1:], synapses, strict=True)
    return with_weights(state, [jnp.where(layer["mask"], w, layer["w"]) for layer, w in layers])


def plastic_pass(
    network: KCapNetwork, tables: Tables, state: State, xs: ArrayLike, ys: ArrayLike
) -> tuple[State, Int[Array, " samples"], Diagnostics]:
    """Learns from each sample once, in order: a forward pass followed by a plasticity update.

    `beta_ij = table[pre_i, post_j, ...]`, `w <- w + step_size beta mask` (see `Scheme`)

    The first layer is evaluated for all samples at once, which takes memory for a few numbers per sample and
    unit; splitting a long stream into several passes gives the same result. The pass is differentiable;
    `meta_learn` computes the same gradient at lower cost.

    Args:
      network: from `k_cap_mlp` or `k_cap_recurrent`.
      tables: from `network.init_tables`, `meta_learn` or `transfer`.
      state: from `network.init` or an earlier pass.
      xs: samples in order, `[samples, inputs]`.
      ys: integer labels, `[samples]`.

    Returns:
      The state after the pass, the predictions before each update `[samples]`, and the diagnostics.

    Example:
      >>> import lax_learning as ll
      >>> network = ll.plasticity.k_cap_mlp((8, 20, 20, 2), cap=10)
      >>> state = network.init(jax.random.key(0))
      >>> tables = network.init_tables(jax.random.key(1))
      >>> xs = jax.random.normal(jax.random.key(2), (5, 8))
      >>> state, predictions, _ = plastic_pass(network, tables, state, xs, jnp.array([0, 1, 1, 0, 1]))
      >>> predictions.shape
      (5,)
    """
    check_network(network)
    xs, ys = checks.as_array("xs", xs), checks.as_array("ys", ys)
    samples = xs.shape[:1]
    checks.check_shapes(["xs", "ys"], [xs, ys], [(*samples, network.shapes[0][0]), samples])
    checks.check_count("number of samples in xs", len(xs))
    ys = _as_labels("ys", ys, network.shapes[-1][1])
    drives = network.drive(state, xs)

    def react(synapses: Synapses, drive: Drive, label: Array) -> tuple[tuple[Change, ...], Diagnostics]:
        return read_changes(network, tables, state, network.respond_to(synapses, drive), label)

    # The change after a sample is applied at the start of the next step, when it comes from the carry as a
    # few vectors in memory. If it were applied immediately, XLA would fuse the search for the cap and the
    # table lookup into the expansion and repeat them for every synapse (two to three times as slow on CPU).
    # Within the scan, weights without a synapse are 0, so no mask is needed.
    def step(carry: tuple[Synapses, Any], sample: tuple[Drive, Array]) -> tuple[tuple[Synapses, Any], Any]:
        synapses = _change(network, state, *carry)
        changes, diagnostics = react(synapses, *sample)
        return (synapses, changes), diagnostics

    start = network.synapses(state)
    first = jax.tree.map(lambda a: a[0], drives)
    none = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: react(start, first, ys[0])[0]))
    carry, diagnostics = jax.lax.scan(step, (start, none), (drives, ys))
    after = _joined(state, _change(network, state, *carry))
    return after, diagnostics.prediction, diagnostics


def table_plasticity(network: KCapNetwork) -> Dynamics:
    """Returns the plasticity of a network as `Dynamics`, to learn from one sample per call.

    `init(key) -> state` and `update(tables, state, x, y) -> (state, diagnostics)`, with `x [inputs]` and an
    integer label `y`. An update equals the step of `plastic_pass` for one sample.

    Example:
      >>> import lax_learning as ll
      >>> network = ll.plasticity.k_cap_mlp((8, 20, 20, 2), cap=10)
      >>> dynamics = table_plasticity(network)
      >>> state, tables = dynamics.init(jax.random.key(0)), network.init_tables(jax.random.key(1))
      >>> state, diagnostics = jax.jit(dynamics.update)(tables, state, jnp.ones(8), 1)
      >>> diagnostics.prediction.shape
      ()
    """
    check_network(network)

    def update(tables: Tables, state: State, x: ArrayLike, y: ArrayLike) -> tuple[State, Diagnostics]:
        x, y = checks.as_array("x", x), checks.as_array("y", y)
        checks.check_shapes(["x", "y"], [x, y], [network.shapes[0][:1], ()])
        y = _as_labels("y", y, network.shapes[-1][1])
        drive, synapses = network.drive(state, x), network.synapses(state)
        changes, diagnostics = read_changes(network, tables, state, network.respond_to(synapses, drive), y)
        return _joined(state, _change(network, state, synapses, changes)), diagnostics

    return Dynamics(network.init, update)


def _as_labels(name: str, labels: Array, num_labels: int) -> Int[Array, "*samples"]:
    """Returns labels as int32; raises unless they are integers in range."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype}")
    if not isinstance(labels, Tracer):
        values = np.asarray(labels)
        outside = values[(values < 0) | (values >= num_labels)]
        if outside.size:
            raise ValueError(f"{name}: expected labels in 0 .. {num_labels - 1}, got {outside.flat[0]}")
    return labels.astype(jnp.int32)
