"""The contracts: losses, estimators, rules and dynamics."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Key: TypeAlias = PRNGKeyArray
Params: TypeAlias = PyTree[Any]
Weights: TypeAlias = dict[str, Array]
"""Parameters of one layer."""

Where: TypeAlias = str | Callable[[str], bool] | None
"""Selection of parameters by path: a glob such as `*/kernel`, a predicate on the path, or None for all."""


@runtime_checkable
class Loss(Protocol):
    """Per-example loss `l(output, y) -> [batch]`, each of its own example alone; a batch has their mean."""

    def __call__(self, output: Any, y: Any, /) -> Float[Array, " batch"]: ...


@runtime_checkable
class Estimator(Protocol):
    """`jax.value_and_grad` with a key in front: `estimate(key, params, *args) -> (value, grads)`."""

    def __call__(self, key: Key, params: Params, /, *args: Any, **kwargs: Any) -> tuple[Any, Params]: ...


class Signals(NamedTuple):
    """Teaching signals of one example: the gradients are `tapped(model).pull_back` of deltas, plus the rest.

    Fields:
      deltas: by the names of taps.
      rest: part of the gradients that is the same for all examples, such as a decay; None for none.
    """

    deltas: dict[str, Array]
    rest: Params | None = None


class Online(NamedTuple):
    """A rule one step of a sequence at a time: weights may be updated between any two steps.

    Fields:
      start: `(params, x) -> memory`: the state of the network and the traces before the first step; of `x`, a
        batch at one step, only shapes are used.
      step: `(key, params, state, memory, x, y) -> (loss, grads, memory)` at one step of a batch, with the
        state of the rule. With the same params at all steps, losses and grads sum to those of
        `value_and_grad`.
    """

    start: Callable[[Params, Any], Any]
    step: Callable[[Key, Params, Any, Any, Any, Any], tuple[Any, Params, Any]]


class Rule(NamedTuple):
    """A credit assignment rule on one model and one loss.

    Functions of any `Model` and of a per-example loss `(output, y) -> [batch]` return one.

    Fields:
      init: `(key, params, x) -> state`: memory of the rule, `()` for most; of x only shapes are used.
      value_and_grad: `(key, params, state, x, y) -> (loss, grads, state)`. `grads` has the structure, shapes,
        dtypes and units of `jax.grad` of the mean loss; for a model with aux the first is `(loss, aux)`.
      trainable: of the model: which leaves of params are for an optimizer to move.
      signals: `(key, params, state, x, y) -> Signals` of a batch of one, for rules whose gradients are the
        pull-back of teaching signals; None for the others. Metrics take moments over examples from them.
      online: the rule step by step, for rules that need no step to come; None for the others.
      wrapped: `state -> Model`, for rules that put something in front of the model, such as decorrelation;
        None for the others. See `model_at`.
    """

    init: Callable[[Key, Params, Any], Any]
    value_and_grad: Callable[[Key, Params, Any, Any, Any], tuple[Any, Params, Any]]
    trainable: Where = None
    signals: Callable[[Key, Params, Any, Any, Any], Signals] | None = None
    online: Online | None = None
    wrapped: Callable[[Any], Any] | None = None

    def model_at(self, model: Any, state: Any) -> Any:
        """Returns the model to predict with: `model`, or the one that the rule wraps around it in a state."""
        return self.wrapped(state) if self.wrapped else model


class Dynamics(NamedTuple):
    """A process with memory or without a loss, as a pair of pure functions.

    Fields:
      init: `(...) -> state`.
      update: `(..., state, ...) -> (state, diagnostics)`, the diagnostics a NamedTuple.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
