"""Training of a critic: each epoch draws a generator and functions, and takes a few steps on their curves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from lax_learning import _checks as checks
from lax_learning._arrays import as_params, check_counter, check_same_structure
from lax_learning._optimizers import with_loss_support
from lax_learning.symbolic import losses
from lax_learning.symbolic.critics import Critic, as_rows
from lax_learning.types import Key, Params


class CriticState(NamedTuple):
    """Training state: the critic's params and the optimiser state."""

    params: Params
    optimizer_state: optax.OptState


class CriticMetrics(NamedTuple):
    """Metrics of a step, at the params before its update.

    Fields:
      loss_real, loss_fake: from `critic_loss`.
      penalty: the gradient penalty without its weight; 0 if the weight is 0.
      accuracy, auc: `critic_accuracy` and `area_under_curve`.
    """

    loss_real: Float[Array, "..."]
    loss_fake: Float[Array, "..."]
    penalty: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    auc: Float[Array, "..."]


Result = tuple[CriticState, CriticMetrics]
Step = Callable[[Key, CriticState, ArrayLike, ArrayLike], Result]
STATE = "a CriticState, from init_critic"


def init_critic(key: Key, critic: Critic, optimizer: optax.GradientTransformation) -> CriticState:
    """Initialises a critic and its optimiser state."""
    checks.check_instance("critic", critic, Critic, "a Critic")
    params = critic.init(key)
    return CriticState(params, with_loss_support(optimizer).init(params))


def critic_step(
    critic: Critic,
    optimizer: optax.GradientTransformation,
    *,
    objective: losses.Objective = "bce",
    penalty: ArrayLike = 0.0,
) -> Step:
    """Makes a training step of a critic.

    `params <- params + optimizer(d/dparams (loss_real + loss_fake + penalty * gradient_penalty))`

    Args:
      critic: from `critic`.
      optimizer: from optax; its hyper-parameters may be traced. symrep uses weight decay in the gradient:
        `optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))`.
      objective: "bce" or "wgan", as in `critic_loss`.
      penalty: weight of the gradient penalty, with `eps = jax.random.uniform(key, (number,))`; may be traced.
        It is not computed for a concrete 0.

    Returns:
      `step(key, state, real, fake) -> (state, CriticMetrics)`, for curves `[number, points]` or
      `[number, points, channels]`. With a penalty, the numbers of real and fake curves must be equal.
    """
    checks.check_instance("critic", critic, Critic, "a Critic")
    with_loss = with_loss_support(optimizer)
    checks.check_choice("objective", objective, losses.OBJECTIVES)
    checks.check_not_negative("penalty", penalty)
    has_penalty = isinstance(penalty, Tracer) or penalty != 0

    def step(key: Key, state: CriticState, real: ArrayLike, fake: ArrayLike) -> Result:
        checks.check_key("key", key)
        checks.check_instance("state", state, CriticState, STATE)
        real, fake = as_rows("real", real, critic.curve_shape), as_rows("fake", fake, critic.curve_shape)
        state = state._replace(params=as_params(state.params))
        expected = jax.eval_shape(with_loss.init, state.params)
        names = "state.optimizer_state", "optimizer.init(params)"
        check_same_structure(names, (state.optimizer_state, expected))

        def objective_of(params: Params) -> tuple[Array, CriticMetrics]:
            logits = critic.apply(params, real), critic.apply(params, fake)
            loss_real, loss_fake = losses.critic_loss(*logits, objective=objective)
            total, slope = loss_real + loss_fake, jnp.zeros_like(loss_fake)
            if has_penalty:
                eps = jax.random.uniform(key, fake.shape[:1])
                slope = losses.gradient_penalty(critic, params, eps, real, fake)
                slope = jnp.where(jnp.asarray(penalty) != 0, slope, 0)
                total = total + jnp.asarray(penalty, slope.dtype) * slope
            scores = losses.critic_accuracy(*logits), losses.area_under_curve(*logits)
            return total, CriticMetrics(loss_real, loss_fake, slope, *scores)

        (total, metrics), grads = jax.value_and_grad(objective_of, has_aux=True)(state.params)
        seen = {"value": total, "grad": grads, "value_fn": lambda params: objective_of(params)[0]}
        with jax.numpy_dtype_promotion("standard"):  # traced hyper-parameters may have other dtypes
            updates, after = with_loss.update(grads, state.optimizer_state, state.params, **seen)
            params: Any = optax.apply_updates(state.params, updates)
        # These dtypes may be wider than those of the moments, and the carry of a scan must keep its dtypes.
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, expected)
        return CriticState(params, after), metrics

    return step


def train_critic(
    step: Step,
    real: Callable[[Key], Array],
    fake: Callable[[Key], Array],
    *,
    num_epochs: int,
    iterations: int = 5,
) -> Callable[..., Result]:
    """Makes a training run as one scan over epochs; each draws curves and takes some steps on them.

    Args:
      step: from `critic_step`.
      real, fake: `key -> curves` of functions and of a newly drawn generator, for example from `curves_at`.
      num_epochs: number of epochs; epoch e uses the key `fold_in(key, e)`.
      iterations: steps per epoch.

    Returns:
      `train(key, state, first=0) -> (state, CriticMetrics)`, each metric `[num_epochs, iterations]`.
      To resume a run, pass the number of epochs done as `first`.

    Example:
      >>> from lax_learning import symbolic
      >>> judge, optimizer = symbolic.critic(30), optax.adam(1e-3)
      >>> real = lambda key: 1 + jax.random.normal(key, (5, 30))
      >>> fake = lambda key: jax.random.normal(key, (5, 30))
      >>> train = train_critic(critic_step(judge, optimizer), real, fake, num_epochs=4, iterations=3)
      >>> state = init_critic(jax.random.key(0), judge, optimizer)
      >>> state, metrics = jax.jit(train)(jax.random.key(1), state)
      >>> metrics.accuracy.shape
      (4, 3)
    """
    checks.check_function("step", step, "a step, from critic_step", *[None] * 4)
    for name, draw in (("real", real), ("fake", fake)):
        checks.check_function(name, draw, "a function of a key that returns curves", None)
    checks.check_samples("num_epochs", num_epochs)
    checks.check_samples("iterations", iterations)

    def epoch(state: CriticState, key: Key) -> Result:
        fake_key, real_key, step_key = jax.random.split(key, 3)
        drawn = real(real_key), fake(fake_key)

        def iteration(state: CriticState, key: Key) -> Result:
            found = step(key, state, *drawn)
            if not isinstance(found, tuple) or [*map(type, found)] != [CriticState, CriticMetrics]:
                expected = "a function that returns (CriticState, CriticMetrics)"
                raise TypeError(f"step: expected {expected}, got {checks.describe(found)}")
            return found

        return jax.lax.scan(iteration, state, jax.random.split(step_key, iterations))

    def train(key: Key, state: CriticState, first: Int[Array, ""] | int = 0) -> Result:
        checks.check_key("key", key)
        checks.check_instance("state", state, CriticState, STATE)
        checks.check_count("first", first, 0) if isinstance(first, int) else check_counter("first", first)
        epochs = jnp.asarray(first, jnp.int32) + jnp.arange(num_epochs, dtype=jnp.int32)
        return jax.lax.scan(epoch, state, jax.vmap(lambda e: jax.random.fold_in(key, e))(epochs))

    return train
