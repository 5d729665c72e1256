"""Training a critic: a fresh generator and fresh functions every epoch, a few steps of Adam on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from lax_learning._checks import (
    as_array,
    as_params,
    check_count,
    check_flag,
    check_function,
    check_instance,
    check_key,
    check_memory,
    check_not_negative,
    check_same_structure,
    check_scalar,
    describe,
)
from lax_learning.symbolic.critic import Critic, check_curves
from lax_learning.symbolic.critic_losses import (
    area_under_curve,
    check_objective,
    critic_accuracy,
    critic_loss,
    gradient_penalty,
)
from lax_learning.types import Key, Params


class CriticState(NamedTuple):
    """State of training: the critic's params and optax's state."""

    params: Params
    optimizer_state: optax.OptState


class CriticMetrics(NamedTuple):
    """Metrics of a step before it changed the params; of an epoch every field is `[iterations]`.

    Fields:
      loss_real: loss on real curves.
      loss_fake: loss on fake curves.
      penalty: the gradient penalty, without its weight; 0 where the weight is 0.
      accuracy: share of curves on the right side of 0.
      auc: area under the receiver operating characteristic.
    """

    loss_real: Float[Array, "..."]
    loss_fake: Float[Array, "..."]
    penalty: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    auc: Float[Array, "..."]


Step = Callable[[Key, CriticState, ArrayLike, ArrayLike], tuple[CriticState, CriticMetrics]]
Epoch = Callable[[Key, CriticState], tuple[CriticState, CriticMetrics]]


def uniform_eps(key: Key, number: int) -> Float[Array, " number"]:
    """`U(0, 1)`: the share of the real curve in each pair that the gradient penalty mixes."""
    return jax.random.uniform(key, (number,))


def init_critic(key: Key, critic: Critic, optimizer: optax.GradientTransformation) -> CriticState:
    """A fresh critic and the state of its optimiser."""
    check_instance("critic", critic, Critic, "a Critic")
    _check_optimizer(optimizer)
    params = critic.init(key)
    return CriticState(params, optimizer.init(params))


def _check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless it is one of optax."""
    expected = "an optimizer of optax, such as adam_with_decay(1e-3)"
    check_instance("optimizer", optimizer, optax.GradientTransformation, expected)


def critic_step(
    critic: Critic,
    optimizer: optax.GradientTransformation,
    *,
    objective: str = "bce",
    penalty: ArrayLike = 0.0,
    draws: Callable[[Key, int], Array] = uniform_eps,
) -> Step:
    """One step of a critic's training.

    `params <- params + optimizer(d/dparams (loss_real + loss_fake + penalty * gradient_penalty))`

    Args:
      critic: the critic.
      optimizer: from optax, such as `adam_with_decay`.
      objective: "bce" or "wgan", as in `critic_loss`.
      penalty: weight of the gradient penalty, which is not computed for a plain 0; it may be traced.
      draws: `(key, number) -> eps [number]`, to put other shares of real curves in.

    Returns:
      `step(key, state, real, fake) -> (state, CriticMetrics)`, the curves `[number, points]` or
      `[number, points, channels]`; with a penalty as many real as fake ones.

    Raises:
      TypeError, ValueError: for an unknown objective or a negative penalty and, at trace time, curves of
        another shape than the critic's, or none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lax_learning.symbolic.adam import adam_with_decay
      >>> from lax_learning.symbolic.critic import critic
      >>> judge, optimizer = critic(30), adam_with_decay(1e-3, decay=1e-7)
      >>> step = critic_step(judge, optimizer, penalty=1e-4)
      >>> state = init_critic(jax.random.key(0), judge, optimizer)
      >>> state, metrics = step(jax.random.key(1), state, jnp.ones((5, 30)), jnp.zeros((5, 30)))
      >>> float(metrics.loss_real + metrics.loss_fake) < 2
      True

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    check_instance("critic", critic, Critic, "a Critic")
    _check_optimizer(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)
    check_objective(objective)
    check_not_negative("penalty", penalty)
    check_scalar("penalty", penalty)
    check_function("draws", draws, "a function of (key, number)", None, 1)
    weight = None if not isinstance(penalty, Tracer) and penalty == 0 else penalty

    def step(
        key: Key, state: CriticState, real: ArrayLike, fake: ArrayLike
    ) -> tuple[CriticState, CriticMetrics]:
        check_key("key", key)
        check_instance("state", state, CriticState, "a CriticState, from init_critic")
        real = check_curves("real", real, critic.curve_shape)
        fake = check_curves("fake", fake, critic.curve_shape)
        state = state._replace(params=as_params(state.params))
        expected = jax.eval_shape(optimizer.init, state.params)
        check_same_structure(
            ("state.optimizer_state", "optimizer.init(params)"), (state.optimizer_state, expected)
        )

        def objective_of(params: Params) -> tuple[Array, Any]:
            logits = critic.apply(params, real), critic.apply(params, fake)
            loss_real, loss_fake = critic_loss(*logits, objective=objective)
            total, slope = loss_real + loss_fake, jnp.zeros_like(loss_fake)
            if weight is not None:
                slope = gradient_penalty(critic, params, draws(key, fake.shape[0]), real, fake)
                slope = jnp.where(jnp.asarray(weight) != 0, slope, 0)
                total = total + jnp.asarray(weight, slope.dtype) * slope
            return total, (logits, (loss_real, loss_fake, slope))

        (total, aux), grads = jax.value_and_grad(objective_of, has_aux=True)(state.params)
        logits, (loss_real, loss_fake, slope) = aux
        scores = critic_accuracy(*logits), area_under_curve(*logits)
        seen = {"value": total, "grad": grads, "value_fn": lambda params: objective_of(params)[0]}
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params, **seen)
        with jax.numpy_dtype_promotion("standard"):  # updates may be wider than params
            params: Any = optax.apply_updates(state.params, updates)
        return CriticState(params, optimizer_state), CriticMetrics(loss_real, loss_fake, slope, *scores)

    return step


def critic_epoch(
    generate: Callable[[Key], Array],
    sample: Callable[[Key], Array],
    step: Step,
    iterations: int,
    *,
    resample: bool = False,
) -> Epoch:
    """One epoch: a fresh generator and fresh functions, and `iterations` steps on their curves.

    Args:
      generate: `key -> fake curves` of a fresh generator, extended if the critic is to see more.
      sample: `key -> real curves`, likewise.
      step: from `critic_step`.
      iterations: steps an epoch.
      resample: whether every step gets new real curves; the generator stays that of the epoch.

    Returns:
      `epoch(key, state) -> (state, CriticMetrics)`, each metric `[iterations]`.

    Raises:
      TypeError, ValueError: if iterations is no positive int.

    Example:
      >>> import jax
      >>> from lax_learning.symbolic.adam import adam_with_decay
      >>> from lax_learning.symbolic.critic import critic
      >>> judge, optimizer = critic(30), adam_with_decay(1e-3)
      >>> real = lambda key: 1 + jax.random.normal(key, (5, 30))
      >>> fake = lambda key: jax.random.normal(key, (5, 30))
      >>> epoch = critic_epoch(fake, real, critic_step(judge, optimizer), iterations=3)
      >>> state = init_critic(jax.random.key(0), judge, optimizer)
      >>> state, metrics = jax.jit(train_critic(epoch, num_epochs=4))(jax.random.key(1), state)
      >>> metrics.accuracy.shape
      (4, 3)
    """
    check_function("generate", generate, "a function of a key that returns curves", None)
    check_function("sample", sample, "a function of a key that returns curves", None)
    check_function("step", step, "a step, from critic_step", *[None] * 4)
    check_count("iterations", iterations)
    check_memory("iterations", [(iterations, 2)])
    check_flag("resample", resample)

    def epoch(key: Key, state: CriticState) -> tuple[CriticState, CriticMetrics]:
        check_key("key", key)
        check_instance("state", state, CriticState, "a CriticState, from init_critic")
        generate_key, sample_key, step_key = jax.random.split(key, 3)
        fake = generate(generate_key)
        real = None if resample else sample(sample_key)

        def iteration(state: CriticState, keys: tuple[Key, Any]) -> tuple[CriticState, CriticMetrics]:
            found = step(keys[0], state, sample(keys[1]) if real is None else real, fake)
            return _check_found("step", found)

        keys = (
            jax.random.split(step_key, iterations),
            jax.random.split(sample_key, iterations) if resample else None,
        )
        return jax.lax.scan(iteration, state, keys)

    return epoch


def train_critic(epoch: Epoch, num_epochs: int) -> Callable[..., tuple[CriticState, CriticMetrics]]:
    """Training as one scan over epochs, epoch e with the key `fold_in(key, e)`.

    Args:
      epoch: from `critic_epoch`.
      num_epochs: how many.

    Returns:
      `train(key, state, first=0) -> (state, CriticMetrics)`, each metric `[num_epochs, iterations]`.
      With `first`, the number of epochs done, a run goes on where another one ended.

    Raises:
      TypeError, ValueError: if num_epochs is no positive int.

    Example:
      >>> import jax
      >>> def epoch(key, state):
      ...     zero = jax.numpy.zeros(2)
      ...     return CriticState(state.params + 1, ()), CriticMetrics(zero, zero, zero, zero, zero)
      >>> state, metrics = train_critic(epoch, num_epochs=3)(jax.random.key(0), CriticState(0, ()))
      >>> int(state.params), metrics.auc.shape
      (3, (3, 2))
    """
    check_function("epoch", epoch, "an epoch, from critic_epoch", None, None)
    check_count("num_epochs", num_epochs)
    check_memory("num_epochs", [(num_epochs, 2)])

    def train(
        key: Key, state: CriticState, first: Int[Array, ""] | int = 0
    ) -> tuple[CriticState, CriticMetrics]:
        check_key("key", key)
        check_instance("state", state, CriticState, "a CriticState, from init_critic")
        if not isinstance(first, Tracer) and isinstance(first, int):
            check_count("first", first, minimum=0)
        first = as_array("first", first)
        if first.shape != () or not jnp.issubdtype(first.dtype, jnp.integer):
            raise TypeError(f"first: expected an int, got {describe(first)}")
        epochs = first.astype(jnp.int32) + jnp.arange(num_epochs, dtype=jnp.int32)
        keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(epochs)
        return jax.lax.scan(lambda state, key: _check_found("epoch", epoch(key, state)), state, keys)

    return train


def _check_found(name: str, found: Any) -> tuple[CriticState, CriticMetrics]:
    """Returns the result of a step or an epoch; raises TypeError unless it is a state and metrics."""
    is_pair = isinstance(found, tuple) and len(found) == 2
    if not (is_pair and isinstance(found[0], CriticState) and isinstance(found[1], CriticMetrics)):
        raise TypeError(
            f"{name}: expected a function that returns (CriticState, CriticMetrics), got {describe(found)}"
        )
    return found
