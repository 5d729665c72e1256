"""Recurrent networks defined by their single step, for rules that learn online."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning import _checks as checks
from lax_learning._arrays import as_arrays, check_same_structure
from lax_learning._layers import affine, initialiser, layer
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import check_uncoupled
from lax_learning._sites._equations import vary_as
from lax_learning.models import Model
from lax_learning.rules._common import check_loss
from lax_learning.types import Params, Where


@dataclass(frozen=True, kw_only=True)
class Recurrent(Model):
    """A recurrent network from any library, defined by its single step.

    `h_t = cell(params["cell"], h_{t-1}, x_t)`, `output_t = readout(params["readout"], h_t)`

    As a `Model`, it maps `x [batch, steps, ...]` to outputs `[batch, steps, ...]` and works with every rule.
    Online rules use its step: they apply the loss to the output of each step and sum it over steps.

    Args:
      cell: `(params, h, x) -> h`, one step for a batch; `h` is any pytree of `[batch, ...]`.
      readout: `(params, h) -> output`, one step for a batch.
      start: `batch size -> h` before the first step; has no parameters.
      init: `key -> {"cell": ..., "readout": ...}`.

    Example:
      >>> from flax import linen
      >>> gru, dense = linen.GRUCell(8), linen.Dense(2)
      >>> net = Recurrent(
      ...     cell=lambda params, h, x: gru.apply(params, h, x)[0],
      ...     readout=dense.apply,
      ...     start=lambda size: jnp.zeros((size, 8)),
      ...     init=lambda key: {
      ...         "cell": gru.init(key, jnp.zeros((1, 8)), jnp.zeros((1, 3))),
      ...         "readout": dense.init(key, jnp.zeros((1, 8))),
      ...     },
      ... )
      >>> net.apply(net.init(jax.random.key(0)), jnp.ones((5, 20, 3))).shape
      (5, 20, 2)
    """

    cell: Callable[[Params, Any, Any], Any]
    readout: Callable[[Params, Any], Any]
    start: Callable[[int], Any]
    apply: Callable[[Params, Any], Any] = field(init=False, repr=False)
    has_aux: bool = field(init=False, default=False, repr=False)
    trainable: Where = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        checks.check_callable("cell", self.cell, "a function (params, h, x) -> h", num_arguments=3)
        checks.check_callable("readout", self.readout, "a function (params, h) -> output", num_arguments=2)
        checks.check_callable("start", self.start, "a function batch size -> h", num_arguments=1)
        object.__setattr__(self, "apply", self._run)
        super().__post_init__()

    def step(self, params: Params, h: Any, x: Any) -> tuple[Any, Any]:
        """Returns `(h_t, output_t)` for a batch."""
        h = self.cell(params["cell"], h, x)
        return h, self.readout(params["readout"], h)

    def carry(self, params: Params, x: Any) -> Any:
        """Returns `h` before the first step, in the dtypes that the cell returns, given `x` of one step."""
        _, size = as_batch(x, only_shapes=True)
        h = jax.tree.map(jnp.asarray, self.start(size))
        if not (isinstance(params, dict) and params.keys() == {"cell", "readout"}):
            got = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(f"params: expected a dict with the entries 'cell' and 'readout', got {got}")
        like, _ = jax.eval_shape(as_model(self.cell), params["cell"], (h, x))
        check_same_structure(("start", "the state that cell returns"), (h, like))
        h = jax.tree.map(lambda leaf, after: leaf.astype(after.dtype), h, like)
        return vary_as(h, params, x)

    def _run(self, params: Params, x: Any) -> Any:
        xs = steps_first("x", x)
        h = self.carry(params, jax.tree.map(lambda leaf: leaf[0], xs))
        _, outputs = jax.lax.scan(lambda h, x: self.step(params, h, x), h, xs)
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), outputs)


def check_net(net: Any, loss: Any) -> None:
    """Raises TypeError unless a rule is given a `Recurrent` and a loss."""
    expected = "a Recurrent, such as online.leaky_rnn((3, 64, 2), alpha=0.1)"
    checks.check_instance("net", net, Recurrent, expected)
    check_loss(loss)


def as_model(step: Callable[[Params, Any, Any], Any]) -> Model:
    """Returns the step of a network, or its cell, as a model of `(h, x)`."""
    return Model(lambda params, inputs: step(params, *inputs))


def check_examples(net: Recurrent, params: Params, h: Any, x: Any) -> None:
    """Raises ValueError if the examples of a batch depend on each other."""
    remedy = "use running statistics instead of those of the batch"
    check_uncoupled(as_model(net.step), params, (h, x), remedy)


def first(batch: Any) -> Any:
    """Returns the first example as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[:1], batch)


def steps_first(name: str, sequences: Any) -> Any:
    """Transposes `[batch, steps, ...]` to `[steps, batch, ...]`; raises unless arrays have these axes."""
    lengths = {jnp.shape(leaf)[1:2] for leaf in jax.tree.leaves(sequences)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        shapes = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(sequences)]
        raise ValueError(f"{name}: expected arrays [batch, steps, ...] of equal length > 0, got {shapes}")
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), sequences)


def as_steps(x: Any, y: Any) -> tuple[Any, Any]:
    """Returns inputs and targets with steps as the first axis; raises unless both have the same number."""
    xs, ys = steps_first("x", as_batch(x)[0]), steps_first("y", as_arrays("y", y))
    number, targets = (jax.tree.leaves(steps)[0].shape[0] for steps in (xs, ys))
    if number != targets:
        raise ValueError(f"y: expected {number} steps as in x, got {targets}")
    return xs, ys


def leaky_rnn(
    widths: Sequence[int],
    *,
    alpha: ArrayLike,
    activation: Callable[[Array], Array] = jnp.tanh,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Recurrent:
    """A recurrent network of leaky rate units with a linear readout.

    `h_t = (1 - alpha) h_{t-1} + alpha activation(u_t)`, `u_t = [x_t, h_{t-1}] w + b`, `h_0 = 0`

    Args:
      widths: sizes of the input per step, of the layer and of the output.
      alpha: leak in 0..1, the time step divided by the time constant of the units; may be traced.
      activation: activation function of the units.
      w_init: initialiser of `w [in + units, units]` of the cell and of `w [units, out]` of the readout.
      b_init: initialiser of both `b`; None leaves out the biases.
      dtype: dtype of the parameters.

    Returns:
      A `Recurrent` for `x [batch, steps, in]`, with params `{"cell": {"w", "b"}, "readout": {"w", "b"}}`.

    Example:
      >>> net = leaky_rnn((3, 64, 2), alpha=0.1)
      >>> net.apply(net.init(jax.random.key(0)), jnp.zeros((5, 20, 3))).shape
      (5, 20, 2)

    References:
      Murray, Local online learning in recurrent networks with random feedback,
      https://doi.org/10.7554/eLife.43299, 2019.
    """
    sizes = checks.as_sizes("widths", widths)
    if len(sizes) != 3:
        raise ValueError(f"widths: expected the sizes of input, layer and output, got {sizes}")
    checks.check_probability("alpha", alpha)
    checks.check_callable("activation", activation, "a function of u, such as jnp.tanh")
    num_inputs, num_units, num_outputs = sizes

    def cell(params: Params, h: Array, x: Array) -> Array:
        rate = jnp.asarray(alpha, h.dtype)
        u = affine(jnp.concatenate([x.astype(h.dtype), h], axis=-1), params)
        return (1 - rate) * h + rate * activation(u)

    shapes = (num_inputs + num_units, num_units), (num_units, num_outputs)
    weights = initialiser([layer(shape, w_init, b_init) for shape in shapes], dtype)
    return Recurrent(
        cell=cell,
        readout=lambda params, h: affine(h, params),
        start=lambda size: jnp.zeros((size, num_units), dtype),
        init=lambda key: dict(zip(("cell", "readout"), weights(key), strict=True)),
    )
