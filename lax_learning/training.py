"""Training runs as pure functions of a key: a scan over updates, with evaluations at regular intervals."""

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
from lax_learning._structure import merged
from lax_learning.data._batches import Batches, BatchState, batches
from lax_learning.data.types import Dataset, Splits, check_splits
from lax_learning.models import leaf_paths, selects
from lax_learning.types import Key, Params, Rule

Evaluate = Callable[[Key, Params, Any, Splits], PyTree]


def no_metrics(key: Key, params: Params, state: Any, data: Splits) -> PyTree:
    """Evaluates nothing."""
    return ()


class TrainState(NamedTuple):
    """State of a run; together with the number of updates done, it determines the rest of the run.

    Fields:
      params: params of the model.
      rule_state: state of the rule; empty for most rules.
      optimizer_state: state of the optimiser.
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
      evaluations: results of `evaluate` at the start and then every `every` updates; every leaf has a
        leading axis of length `1 + num_updates / every`.
      state: final state.
    """

    losses: Float[Array, "... updates"]
    evaluations: PyTree
    state: TrainState


@dataclass(frozen=True)
class Train:
    """A training run; call it to run it as a whole, or call its functions to run it in pieces.

    Fields:
      init: `(key, data) -> state`.
      update: `(data, state, step) -> (state, loss)` for update number `step`, starting at 0.
      evaluate: `(state, step, data) -> evaluation` after `step` updates.
      num_updates, every: number of updates in the run, and between evaluations.
    """

    init: Callable[[Key, Splits], TrainState]
    update: Callable[[Splits, TrainState, Int[Array, ""] | int], tuple[TrainState, Array]]
    evaluate: Callable[[TrainState, Int[Array, ""] | int, Splits], PyTree]
    num_updates: int
    every: int

    def advance(
        self, state: TrainState, step: Int[Array, ""] | int, data: Splits
    ) -> tuple[TrainState, Array]:
        """Returns the state after the next `every` updates, from number `step`, and their losses.

        Leave `step` unbatched under vmap.
        """
        return jax.lax.scan(partial(self.update, data), state, step + jnp.arange(self.every))

    def __call__(self, key: Key, data: Splits) -> History:
        """Performs the whole run, starting from `key`."""
        start = self.init(key, data)
        first = self.evaluate(start, 0, data)

        def interval(state: TrainState, step: Array) -> tuple[TrainState, tuple[Array, PyTree]]:
            state, losses = self.advance(state, step, data)
            return state, (losses, self.evaluate(state, step + self.every, data))

        steps = jnp.arange(0, self.num_updates, self.every)
        state, (losses, evaluations) = jax.lax.scan(interval, start, steps)
        evaluations = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, evaluations)
        return History(losses.reshape(self.num_updates), evaluations, state)


def _absorbed(absorb: Callable[[Params, Any], Params] | None, params: Params, aux: list[Any]) -> Params:
    """Returns params after `absorb`; `aux` is empty for a model without aux."""
    if absorb is None and aux:
        raise TypeError(
            "absorb: expected a function (params, aux) -> params that uses the model's aux, got None; to "
            "discard aux, pass lambda params, aux: params"
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
    evaluate: Evaluate = no_metrics,
    every: int | None = None,
) -> Train:
    """Combines any rule and any optimiser into a training run.

    `params <- params + optimizer(grads of a batch)`, on batches that are reshuffled every epoch.

    Args:
      rule: the rule that assigns credit.
      optimizer: an optax optimiser; its learning rate may be traced. Optimisers that use the loss receive
        `value`, the loss of the batch, `grad`, its gradients, and `value_fn`, a function `params -> loss`.
      init: `key -> params`, such as `model.init`.
      num_updates, batch_size: number of updates in the run, and of examples per update.
      absorb: for a model with aux: `(params, aux) -> params`, applied after every update; writes new running
        statistics back to the leaves of params that are not trained.
      evaluate: `(key, params, state, data) -> pytree` of metrics, where `state` is that of the rule.
      every: number of updates between evaluations, a divisor of num_updates; by default, the run is evaluated
        only at the start and the end.

    Returns:
      `train(key, data) -> History`, a pure function of a key and `Splits`, written for one seed and not
      compiled; for many seeds, see `ensemble`.

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
        """Returns params with None in place of leaves that are not trained."""
        chosen = (selects(rule.trainable, path, "trainable") for path in leaf_paths(params))
        return jax.tree.map(lambda leaf: leaf if next(chosen) else None, params)

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
            params = merged(state.params, parameters)
            value = rule.value_and_grad(key, params, state.rule_state, *batch)[0]
            return value[0] if isinstance(value, tuple) else value

        updates, optimizer_state = with_loss.update(
            grads, state.optimizer_state, parameters, value=loss, grad=grads, value_fn=loss_at
        )
        params = merged(state.params, optax.apply_updates(parameters, updates))
        params = _absorbed(absorb, params, aux)
        return TrainState(params, rule_state, optimizer_state, order, *state[-2:]), loss

    def evaluate_state(state: TrainState, step: Int[Array, ""] | int, data: Splits) -> PyTree:
        key = jax.random.fold_in(state.evaluate_key, step)
        return as_arrays("evaluate", evaluate(key, state.params, state.rule_state, data))

    return Train(start, update, evaluate_state, num_updates, every)
