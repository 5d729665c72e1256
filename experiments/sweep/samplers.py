"""The samplers of Optuna, with draws that depend on the number of a trial alone."""

from collections.abc import Callable
from math import prod
from typing import Any

import optuna
from optuna import samplers
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.config import Config, PrunerName, SamplerName
from experiments.sweep.space import Space

Study = optuna.Study


class _Grid(samplers.GridSampler):
    """Point i for trial i; the number of trials ends the study."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        pass


SAMPLERS: dict[SamplerName, Callable[[Space, int], samplers.BaseSampler]] = {
    "tpe": lambda space, seed: samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda space, seed: samplers.RandomSampler(seed=seed),
    "grid": lambda space, seed: _Grid(space.grid, seed=0),
    "cmaes": lambda space, seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
}

PRUNERS: dict[PrunerName, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=8),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "none": lambda: optuna.pruners.NopPruner(),
}


class ByNumber(samplers.BaseSampler):
    """A sampler that is seeded anew for every trial by its number.

    So workers never draw the same, and a study that goes on does not repeat its first draws.
    """

    def __init__(self, make: Callable[[int], samplers.BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._make((self._seed * 1_000_003 + 7919 * trial.number) % 2**31)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)


def sampler_of(config: Config, space: Space) -> samplers.BaseSampler:
    """The sampler that was asked for.

    Raises:
      ValueError: for a grid without points for every range, or with fewer points than trials.
    """
    if config.sampler == "grid":
        without = [name for name, values in space.grid.items() if not values]
        if without:
            raise ValueError(
                f"--space: {without[0]}: expected points = N with --sampler grid, got a range without points"
            )
        size = prod(len(values) for values in space.grid.values())
        if config.trials > size:
            raise ValueError(
                f"--trials: expected at most {size}, the points of the grid, got {config.trials}"
            )
    return ByNumber(lambda seed: SAMPLERS[config.sampler](space, seed), config.seed)
