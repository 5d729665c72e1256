"""OpenAI's evolution strategy in evosax, on all weights of a network."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from evosax.algorithms import Open_ES  # pyright: ignore[reportMissingImports]
from evosax.core.fitness_shaping import identity_fitness_shaping_fn  # pyright: ignore[reportMissingImports]


def training(
    loss: Callable[..., Any], params: Any, population: int, sigma: float, learning_rate: float
) -> Callable[..., Any]:
    """Returns generations in a scan, `(keys, params, *batch) -> params`, with a mirrored population.

    The fitness is the loss, so each generation is a step along the mean of central differences.
    """
    strategy = Open_ES(
        population_size=population,
        solution=params,
        optimizer=optax.sgd(learning_rate),
        std_schedule=optax.constant_schedule(sigma),
        fitness_shaping_fn=identity_fitness_shaping_fn,
    )
    options = strategy.default_params

    def train(keys: Any, params: Any, *batch: Any) -> Any:
        def generation(state: Any, key: Any) -> tuple[Any, None]:
            asked, told = jax.random.split(key)
            members, state = strategy.ask(asked, state, options)
            losses = jax.vmap(lambda member: loss(member, *batch))(members)
            return strategy.tell(told, members, losses, state, options)[0], None

        state, _ = jax.lax.scan(generation, strategy.init(keys[0], params, options), keys)
        return strategy.get_mean(state)

    return train
