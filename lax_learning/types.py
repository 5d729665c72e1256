"""The contracts: what a loss, an estimator, a rule and its teaching signals are."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from lax_learning._checks import describe

Key: TypeAlias = PRNGKeyArray
Params: TypeAlias = PyTree[Any]
Weights: TypeAlias = dict[str, Array]
"""The parameters of one layer: `w`, `b` unless it has no bias, `feedback` where a rule keeps one."""


@runtime_checkable
class Loss(Protocol):
    """Per-example loss `l(output, y) -> [batch]`; the loss of a batch is its mean."""

    def __call__(self, output: Array, y: Array, /) -> Float[Array, " batch"]: ...


@runtime_checkable
class Estimator(Protocol):
    """`jax.value_and_grad` with a key in front: `estimate(key, params, *args) -> (value, grads)`."""

    def __call__(self, key: Key, params: Params, /, *args: Any, **kwargs: Any) -> tuple[Any, Params]: ...


class Signals(NamedTuple):
    """Teaching signals of a delta rule: everything its weight update is made of.

    Fields:
      losses: loss of every example, `[batch]`.
      inputs: presynaptic activity of every layer, each `[batch, ...]`.
      deltas: teaching signal at the pre-activations of every layer (`dL/dz` for backprop), each
        `[batch, ...]`.
    """

    losses: Array
    inputs: tuple[Array, ...]
    deltas: tuple[Array, ...]


class Rule(NamedTuple):
    """A credit assignment rule on one network and one loss.

    Fields:
      init: `key -> params`: the network's, and the feedback weights if the rule has any. The same key
        gives the same network weights under every rule.
      value_and_grad: `(key, params, x, y) -> (loss, grads)`, `grads` with the structure, shapes, dtypes
        and units of `jax.grad`.
      signals: `(key, params, x, y) -> Signals` for rules whose update is the outer product of a
        teaching signal and the presynaptic activity, each example as in a batch of one; None for the
        others. Metrics use it to get the moments over examples from two matrix products.
    """

    init: Callable[[Key], Params]
    value_and_grad: Callable[[Key, Params, ArrayLike, ArrayLike], tuple[Array, Params]]
    signals: Callable[[Key, Params, ArrayLike, ArrayLike], Signals] | None = None


class StatefulRule(NamedTuple):
    """A rule with memory beside its params, which no gradient touches.

    Fields:
      init: `key -> (params, state)`.
      value_and_grad: `(key, params, state, x, y) -> (loss, grads, state)`, otherwise as of a `Rule`.
      plain: `(params, state) -> params` that do the same in the network itself, without the state.
    """

    init: Callable[[Key], tuple[Params, Any]]
    value_and_grad: Callable[[Key, Params, Any, ArrayLike, ArrayLike], tuple[Array, Params, Any]]
    plain: Callable[[Params, Any], Params]


def as_stateful(rule: Rule | StatefulRule) -> StatefulRule:
    """The rule itself, or a plain one with an empty state.

    Raises:
      TypeError: for anything else.
    """
    if isinstance(rule, StatefulRule):
        return rule
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a Rule, such as backprop(network, loss), got {describe(rule)}")
    return StatefulRule(
        lambda key: (rule.init(key), ()),
        lambda key, params, state, x, y: (*rule.value_and_grad(key, params, x, y), state),
        lambda params, state: params,
    )


class Dynamics(NamedTuple):
    """A process with memory or without a loss, as a pair of pure functions.

    Fields:
      init: `(...) -> state`.
      update: `(..., state, ...) -> (state, diagnostics)`, the diagnostics a NamedTuple.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
