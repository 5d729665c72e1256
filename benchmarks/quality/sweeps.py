"""Measures rules at settings, all seeds in one program, and gathers sweeps into datasets with named axes."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

import lax_learning as ll
from benchmarks.quality import kept
from benchmarks.quality.kept import Measured
from benchmarks.quality.measures import measure_draws, measure_examples
from benchmarks.quality.problems import (
    Problem,
    choose_batch,
    make_problem,
    weights_after,
)
from benchmarks.quality.rules import DENSE_ALONE, averaged, make_rule
from benchmarks.quality.settings import Setting
from benchmarks.quality.theory import Exact, exact_signals, predict
from benchmarks.work import work_of
from lax_learning._ensemble import Ensemble
from lax_learning.types import Key, Params


class Bench:
    """Measures rules at settings; what was measured or compiled once is kept.

    sigma, the number of gradients averaged and the number of updates are traced: settings that differ in
    these alone share one compiled program.

    Args:
      images: `[images, side, side]`, in 0..1.
      labels: `[images, classes]`, one-hot.
      seeds: number of seeds; each has its own weights, examples and noise, the same for every rule.
      draws: gradients over which moments are taken, for every seed.
      examples: examples over which SNR is taken, for every seed.
      seed: base PRNG seed.
      folder: for what is measured, from which it is read again; by default memory alone.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        seeds: int,
        draws: int,
        examples: int,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._images, self._labels, self._draws, self._examples = images, labels, draws, examples
        self._keys = jax.random.split(jax.random.key(seed), seeds)
        self._set_stages: dict[Setting, tuple[Problem, Ensemble]] = {}
        self._stages: dict[Setting, _Stage] = {}
        self._programs: dict[tuple[str, Setting], Ensemble] = {}
        self._measured: dict[tuple[str, Setting], Measured] = {}
        self._kept = folder

    def measure(self, rule: str, setting: Setting) -> Measured:
        """Every metric and what theory says of it (`theory_...`), `[seed, layers + 1]`."""
        if (rule, setting) not in self._measured:
            found = None if self._kept is None else kept.load(self._kept, rule, setting)
            if rule in DENSE_ALONE and setting.network != "dense":
                found = {k: np.full_like(v, np.nan) for k, v in self.measure("backprop", setting).items()}
            elif found is None:
                stage, program = self._stage(setting), self._program(rule, setting)
                found = program(self._keys, stage, setting.sigma, setting.num_samples)
                found = jax.tree.map(np.asarray, found)
                if self._kept is not None:
                    kept.save(self._kept, rule, setting, found)
            self._measured[rule, setting] = found
        return self._measured[rule, setting]

    def measure_all(
        self, rules: Sequence[str], settings: Iterable[Setting], done: Callable[[str, Setting], Any]
    ) -> None:
        """Measures all rules at all settings, two programs at a time: one compiles while another runs.

        Args:
          rules: names of rules.
          settings: the settings.
          done: called with the rule's name and the setting after every measurement, by any thread.
        """
        groups: dict[Setting, list[Setting]] = {}
        for setting in dict.fromkeys(settings):
            groups.setdefault(_shapes(setting), []).append(setting)

        def set_stages(group: list[Setting]) -> None:
            for setting in group:
                self._stage(setting)

        def measure_group(rule_and_group: tuple[str, list[Setting]]) -> None:
            rule, group = rule_and_group
            for setting in group:
                self.measure(rule, setting)
                done(rule, setting)

        with ThreadPoolExecutor(2) as pool:
            try:
                list(pool.map(set_stages, groups.values()))
                list(pool.map(measure_group, [(rule, group) for group in groups.values() for rule in rules]))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def sweep(self, name: str, rules: Sequence[str], settings: Sequence[Setting]) -> xr.Dataset:
        """Measures rules at settings that differ in one field.

        Args:
          name: of the field.
          rules: names of rules.
          settings: one a value of the field.

        Returns:
          A variable for every metric, its standard error over draws and its theory, with the dimensions rule,
          `name`, seed and layer; of networks with fewer layers than the deepest those missing are NaN.
        """
        depth = max(setting.depth for setting in settings) + 1
        per_rule = []
        for rule in rules:
            found = []
            for setting in settings:
                padded = {k: _padded(v, depth) for k, v in self.measure(rule, setting).items()}
                found.append(padded)
            per_rule.append({k: np.stack([each[k] for each in found]) for k in found[0]})
        dims = ("rule", name, "seed", "layer")
        return xr.Dataset(
            {k: (dims, np.stack([each[k] for each in per_rule])) for k in per_rule[0]},
            coords={
                "rule": list(rules),
                name: [getattr(setting, name) for setting in settings],
                "seed": np.arange(len(self._keys)),
                "layer": [*(str(i + 1) for i in range(depth)), "total"],
            },
            attrs={"draws": self._draws, "examples": self._examples},
        )

    def flops(self, rule: str, setting: Setting) -> float:
        """Floating-point operations of the matrix products of one gradient, as `work_of` counts them.

        Those of the loss count where the gradient needs it. Averages of K cost K times that; a rule's own
        `num_samples` may share the clean pass among draws.
        """
        problem = make_problem(setting, self._images, self._labels)
        made = make_rule(rule, problem.model, problem.loss, setting.sigma)
        x, y = problem.x[: setting.batch_size], problem.y[: setting.batch_size]
        params = jax.eval_shape(problem.model.init, self._keys[0])
        state = jax.eval_shape(made.init, self._keys[0], params, x)

        def gradient(key: Key, params: Params, state: Any) -> Params:
            return made.value_and_grad(key, params, state, x, y)[1]

        return work_of(jax.jit(gradient).trace(self._keys[0], params, state)).flops

    def _stage(self, setting: Setting) -> "_Stage":
        """Returns what all rules share at a setting."""
        anywhere = replace(setting, sigma=1.0, num_samples=1)
        if anywhere not in self._stages:
            shapes = _shapes(setting)
            if shapes not in self._set_stages:
                problem = make_problem(setting, self._images, self._labels)
                program = ll.ensemble(
                    _set_stage(problem, setting.batch_size, self._examples), in_axes=(0, None, None, None)
                )
                self._set_stages[shapes] = problem, program
            problem, program = self._set_stages[shapes]
            self._stages[anywhere] = program(self._keys, setting.updates, problem.x, problem.y)
        return self._stages[anywhere]

    def _program(self, rule: str, setting: Setting) -> Ensemble:
        shapes = rule, _shapes(setting)
        if shapes not in self._programs:
            problem = make_problem(setting, self._images, self._labels)
            of_seed = _of_seed(rule, problem.model, problem.loss, self._draws)
            self._programs[shapes] = ll.ensemble(of_seed, in_axes=(0, 0, None, None))
        return self._programs[shapes]


def _shapes(setting: Setting) -> Setting:
    """The setting without what is traced: the same for settings that share their programs."""
    return replace(setting, sigma=1.0, num_samples=1, updates=0)


class _Stage(NamedTuple):
    """Problem of one seed for all rules: params before and after updates, a batch, more examples."""

    start: Params
    params: Params
    x: Array
    y: Array
    examples_x: Array
    examples_y: Array
    exact: Exact


def _set_stage(problem: Problem, batch_size: int, num_examples: int) -> Callable[..., _Stage]:
    exact = ll.backprop(problem.model, problem.loss)

    def set_stage(key: Key, updates: Array, images: Array, labels: Array) -> _Stage:
        init_key, train_key, batch_key, _ = jax.random.split(key, 4)
        init_key, _ = jax.random.split(init_key)
        batch_key, examples_key = jax.random.split(batch_key)
        data = problem._replace(x=images, y=labels)
        start = problem.model.init(init_key)
        params = weights_after(train_key, data, exact, start, updates, batch_size)
        x, y = choose_batch(batch_key, data, batch_size)
        examples = choose_batch(examples_key, data, num_examples)
        signals = exact_signals(problem.model, problem.loss, key, params, x, y)
        return _Stage(start, params, x, y, *examples, signals)

    return set_stage


def _of_seed(name: str, model: ll.Model, loss: ll.Loss, draws: int) -> Callable[..., dict[str, Array]]:
    def of_seed(key: Key, stage: _Stage, sigma: Array, num_samples: Array) -> dict[str, Array]:
        init_key, *_, measure_key = jax.random.split(key, 4)
        draws_key, examples_key = jax.random.split(measure_key)
        _, state_key = jax.random.split(init_key)
        rule = averaged(make_rule(name, model, loss, sigma), num_samples)
        state = rule.init(state_key, stage.start, stage.x)
        grads = stage.exact.grads
        of_draws = measure_draws(
            rule, stage.params, state, stage.x, stage.y, draws_key, draws, reference=grads
        )
        of_examples = measure_examples(
            model, rule, stage.params, state, stage.examples_x, stage.examples_y, examples_key
        )
        theory = predict(name, stage.exact, num_samples)
        return {**of_draws, **of_examples, **{f"theory_{k}": v for k, v in theory.items()}}

    return of_seed


def _padded(of_layers: np.ndarray, depth: int) -> np.ndarray:
    """`[seed, layers + 1]` with NaN for the layers that are missing, the total still at the end."""
    layers, total = of_layers[:, :-1], of_layers[:, -1:]
    missing = np.full((len(layers), depth - layers.shape[1]), np.nan)
    return np.concatenate([layers, missing, total], axis=1)
