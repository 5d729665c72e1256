"""Interfaces of losses, estimators, rules and dynamics."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Key: TypeAlias = PRNGKeyArray
Params: TypeAlias = PyTree[Any]
Weights: TypeAlias = dict[str, Array]
"""Parameters of one layer."""

Where: TypeAlias = str | Callable[[str], bool] | None
"""Selection of parameters by path: a glob such as `*/kernel`, a function `path -> bool`, or None for all."""


@runtime_checkable
class Loss(Protocol):
    """Per-example loss `l(output, y) -> [batch]`; each entry depends only on its own example."""

    def __call__(self, output: Any, y: Any, /) -> Float[Array, " batch"]: ...


@runtime_checkable
class Estimator(Protocol):
    """`jax.value_and_grad` with a key in front: `estimate(key, params, *args) -> (value, grads)`."""

    def __call__(self, key: Key, params: Params, /, *args: Any, **kwargs: Any) -> tuple[Any, Params]: ...


class Signals(NamedTuple):
    """Teaching signals for one example: its gradients are `tapped(model).pull_back` of `deltas`, plus `rest`.

    Fields:
      deltas: teaching signal at every tap, by name.
      rest: part of the gradients that is the same for all examples, such as a decay, or None.
    """

    deltas: dict[str, Array]
    rest: Params | None = None


class Online(NamedTuple):
    """A rule applied one step of a sequence at a time, so that weights may be updated between steps.

    Fields:
      start: `(params, x) -> memory`, the state of the network and the traces before the first step; only the
        shapes of `x`, a batch at one step, are used.
      step: `(key, params, state, memory, x, y) -> (loss, grads, memory)` for one step of a batch, with the
        state of the rule. If params are the same at all steps, losses and grads sum to those of
        `value_and_grad`.
    """

    start: Callable[[Params, Any], Any]
    step: Callable[[Key, Params, Any, Any, Any, Any], tuple[Any, Params, Any]]


class Rule(NamedTuple):
    """A credit assignment rule for one model and one loss.

    Functions such as `feedback_alignment(model, loss)` return rules.

    Fields:
      init: `(key, params, x) -> state`, such as feedback weights, or `()`; of x, only shapes are used.
      value_and_grad: `(key, params, state, x, y) -> (loss, grads, state)`. `grads` has the structure, shapes,
        dtypes and units of `jax.grad` of the mean loss. With aux, the first result is `(loss, aux)`.
      trainable: selection of the trained leaves of params, as in `Model`.
      signals: `(key, params, state, x, y) -> Signals` for a batch of one, if gradients are the pull-back of
        teaching signals, else None. Metrics compute moments over examples from them.
      online: the rule step by step, if it needs no future steps, else None.
      wrapped: `state -> Model`, for rules that add something to the model, such as decorrelation, else None.
        See `model_at`.
    """

    init: Callable[[Key, Params, Any], Any]
    value_and_grad: Callable[[Key, Params, Any, Any, Any], tuple[Any, Params, Any]]
    trainable: Where = None
    signals: Callable[[Key, Params, Any, Any, Any], Signals] | None = None
    online: Online | None = None
    wrapped: Callable[[Any], Any] | None = None

    def model_at(self, model: Any, state: Any) -> Any:
        """Returns the model for predictions: `model`, or the one that the rule wraps around it at a state."""
        return self.wrapped(state) if self.wrapped else model


class Dynamics(NamedTuple):
    """A stateful process other than a rule, such as neuron birth-death, as a pair of pure functions.

    Fields:
      init: `(...) -> state`.
      update: `(..., state, ...) -> (state, diagnostics)`, the diagnostics a NamedTuple.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
