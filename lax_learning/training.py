"""A training run as one pure function of a key: one scan over updates, evaluated every so many."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from lax_learning._arrays import as_arrays, by_path, check_same_structure
from lax_learning._checks import MAX_ENTRIES, check_callable, check_count, check_instance, check_key, describe
from lax_learning._optimizers import with_loss_support
from lax_learning.data._batches import Batches, BatchState, batches
from lax_learning.data.types import Dataset, Splits, check_splits
from lax_learning.models import leaf_paths, selects
from lax_learning.types import Key, Params, Rule

Evaluate = Callable[[Key, Params, Any, Splits], PyTree]


class TrainState(NamedTuple):
    """Everything a run needs to go on: with the number of updates done, it fixes the rest of the run.

    Fields:
      params: the rule's params.
      rule_state: state of the rule; empty for most.
      optimizer_state: optax's.
      batches: order of the examples.
      update_key: the key of update t is `fold_in(update_key, t)`.
      evaluate_key: the key of an evaluation after t updates is `fold_in(evaluate_key, t)`.
    """

    params: Params
    rule_state: Any
    optimizer_state: optax.OptState
    batches: BatchState
    update_key: Key
    evaluate_key: Key


class History(NamedTuple):
    """Result of a run.

    Fields:
      losses: loss of the batch before each update, `[num_updates]`.
      evaluations: results of `evaluate` at the start and after every `every` updates, each leaf with
        a leading axis `[1 + num_updates / every]`.
      state: the state at the end.
    """

    losses: Float[Array, "... updates"]
    evaluations: PyTree
    state: TrainState


@dataclass(frozen=True)
class Train:
    """A training run; calling it runs it as a whole, its functions run it in pieces.

    Fields:
      init: `(key, data) -> state`.
      update: `(data, state, step) -> (state, loss)`: update number `step`.
      evaluate: `(state, step, data) -> evaluation` after `step` updates.
      num_updates: length of the run.
      every: updates between evaluations.
    """

    init: Callable[[Key, Splits], TrainState]
    update: Callable[[Splits, TrainState, Int[Array, ""] | int], tuple[TrainState, Array]]
    evaluate: Callable[[TrainState, Int[Array, ""] | int, Splits], PyTree]
    num_updates: int
    every: int

    def advance(
        self, state: TrainState, step: Int[Array, ""] | int, data: Splits
    ) -> tuple[TrainState, Array]:
        """Returns the state after the next `every` updates, and their losses.

        The first of them is number `step`; leave it unbatched under vmap.
        """
        return jax.lax.scan(partial(self.update, data), state, step + jnp.arange(self.every))

    def __call__(self, key: Key, data: Splits) -> History:
        """Runs from `key` to the end."""
        start = self.init(key, data)
        first = self.evaluate(start, 0, data)

        def interval(state: TrainState, step: Array) -> tuple[TrainState, tuple[Array, PyTree]]:
            state, losses = jax.lax.scan(partial(self.update, data), state, step + jnp.arange(self.every))
            return state, (losses, self.evaluate(state, step + self.every, data))

        steps = jnp.arange(0, self.num_updates, self.every)
        state, (losses, evaluations) = jax.lax.scan(interval, start, steps)
        evaluations = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, evaluations)
        return History(losses.reshape(self.num_updates), evaluations, state)


def _merged(params: Params, parameters: Params) -> Params:
    """Params with other values where `parameters` holds one."""

    def newer(new: Any, old: Any) -> Any:
        return old if new is None else new

    return jax.tree.map(newer, parameters, params, is_leaf=lambda node: node is None)


def _absorbed(absorb: Callable[[Params, Any], Params] | None, params: Params, aux: list[Any]) -> Params:
    """Params after an update; `aux` is empty for a model without one."""
    if absorb is None and aux:
        raise TypeError(
            "absorb: expected a function (params, aux) -> params, which decides what becomes of the model's "
            "aux, got None; lambda params, aux: params drops it"
        )
    if absorb is None:
        return params
    if not aux:
        raise TypeError(f"absorb: expected None for a model without aux, got {describe(absorb)}")
    new = as_arrays("absorb", absorb(params, *aux))
    check_same_structure(("absorb", "params"), (new, params))

    def check(at: str, leaf: Any, old: Any) -> None:
        if leaf.dtype != old.dtype:
            raise TypeError(f"{at}: expected {old.dtype} as in params, got {describe(leaf)}")

    by_path("absorb", check, new, params)
    return new


def make_train(
    rule: Rule,
    optimizer: optax.GradientTransformation,
    *,
    init: Callable[[Key], Params],
    num_updates: int,
    batch_size: int,
    absorb: Callable[[Params, Any], Params] | None = None,
    evaluate: Evaluate = lambda key, params, state, data: (),
    every: int | None = None,
) -> Train:
    """Makes a training run out of any rule and any optimiser.

    `params <- params + optimizer(grads of a batch)`, on batches that are reshuffled every epoch.

    Args:
      rule: the rule that assigns credit.
      optimizer: from optax; its learning rate may be traced. One that looks at the loss gets it: `value`, the
        loss of the batch, `grad`, its gradients, and `value_fn`, the loss of the batch at other params.
      init: `key -> params`, such as `model.init`.
      num_updates: length of the run.
      batch_size: examples an update.
      absorb: for a model with aux, `(params, aux) -> params` after an update: puts new running statistics
        back among the leaves of params that are not trained.
      evaluate: `(key, params, state, data) -> pytree` of metrics, with the state of the rule.
      every: updates between evaluations, a divisor of num_updates; by default the run is evaluated at its
        start and its end alone.

    Returns:
      `train(key, data) -> History` on `Splits`, a pure function written for one seed: see `ensemble` for
      many. Nothing is compiled here.

    Example:
      >>> import jax, optax
      >>> import lax_learning as ll
      >>> model = ll.mlp((784, 8, 10), activation=jax.nn.sigmoid)
      >>> rule = ll.feedback_alignment(model, ll.softmax_cross_entropy)
      >>> x = jax.random.uniform(jax.random.key(0), (20, 784))
      >>> y = jax.nn.one_hot(jax.numpy.arange(20) % 10, 10)
      >>> data = ll.data.Splits(*[ll.data.Dataset(x, y)] * 3)
      >>> train = ll.make_train(rule, optax.sgd(0.1), init=model.init, num_updates=6, batch_size=5)
      >>> jax.jit(train)(jax.random.key(1), data).losses.shape
      (6,)
    """
    check_count("num_updates", num_updates, maximum=MAX_ENTRIES)
    check_count("batch_size", batch_size)
    every = num_updates if every is None else every
    check_count("every", every)
    if num_updates % every:
        raise ValueError(f"every: expected a divisor of num_updates ({num_updates}), got {every}")

    check_instance("rule", rule, Rule, "a Rule, such as backprop(model, loss)")
    check_callable("init", init, "the model's function key -> params", num_arguments=1)
    expected = "a function (key, params, state, data) -> metrics"
    check_callable("evaluate", evaluate, expected, num_arguments=4)
    if absorb is not None:
        check_callable("absorb", absorb, "a function (params, aux) -> params", num_arguments=2)
    with_loss = with_loss_support(optimizer)

    def trained(params: Params) -> Params:
        """Params with None for leaves that no optimizer moves."""
        if rule.trainable is None:
            return params
        paths = iter(leaf_paths(params))
        return jax.tree.map(
            lambda leaf: leaf if selects(rule.trainable, next(paths), "trainable") else None, params
        )

    def schedule(examples: Dataset) -> Batches:
        return batches(len(jax.tree.leaves(examples)[0]), batch_size)

    def start(key: Key, data: Splits) -> TrainState:
        check_key("key", key)
        train_data = check_splits(data)
        params_key, batch_key, update_key, evaluate_key = jax.random.split(key, 4)
        params_key, state_key = jax.random.split(params_key)
        params = as_arrays("init", init(params_key))
        rule_state = rule.init(state_key, params, jax.tree.map(lambda leaf: leaf[:1], train_data.x))
        order = schedule(train_data).init(batch_key)
        optimizer_state = with_loss.init(trained(params))
        return TrainState(params, rule_state, optimizer_state, order, update_key, evaluate_key)

    def update(data: Splits, state: TrainState, step: Int[Array, ""] | int) -> tuple[TrainState, Array]:
        examples = check_splits(data)
        order, indices = schedule(examples).next(state.batches, step)
        key = jax.random.fold_in(state.update_key, step)
        batch = jax.tree.map(lambda leaf: leaf[indices], tuple(examples))
        value, grads, rule_state = rule.value_and_grad(key, state.params, state.rule_state, *batch)
        loss, *aux = value if isinstance(value, tuple) else (value,)
        grads, parameters = trained(grads), trained(state.params)

        def loss_at(parameters: Params) -> Array:
            params = _merged(state.params, parameters)
            value = rule.value_and_grad(key, params, state.rule_state, *batch)[0]
            return value[0] if isinstance(value, tuple) else value

        updates, optimizer_state = with_loss.update(
            grads, state.optimizer_state, parameters, value=loss, grad=grads, value_fn=loss_at
        )
        params = _merged(state.params, optax.apply_updates(parameters, updates))
        params = _absorbed(absorb, params, aux)
        return TrainState(params, rule_state, optimizer_state, order, *state[-2:]), loss

    def evaluate_state(state: TrainState, step: Int[Array, ""] | int, data: Splits) -> PyTree:
        key = jax.random.fold_in(state.evaluate_key, step)
        return as_arrays("evaluate", evaluate(key, state.params, state.rule_state, data))

    return Train(start, update, evaluate_state, num_updates, every)
