"""Measurements of rules at settings, with all seeds in one program."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

import lax_learning as ll
from benchmarks.quality.measures import measure_draws, measure_examples
from benchmarks.quality.problems import Problem, choose_batch, make_problem, weights_after
from benchmarks.quality.report import Measured, rows_of
from benchmarks.quality.rules import DENSE_ALONE, averaged, make_rule
from benchmarks.quality.settings import Setting
from benchmarks.quality.theory import Exact, exact_signals, predict
from benchmarks.work import work_of
from experiments import harness
from lax_learning._ensemble import Ensemble
from lax_learning.types import Key, Params


class Bench:
    """Measures rules at settings, without measuring or compiling anything twice.

    Settings that differ only in sigma, number of averaged gradients or number of updates share a compiled
    program: they have the same `_shapes`.
    """

    def __init__(
        self,
        images: np.ndarray,  # [images, side, side], in 0..1
        labels: np.ndarray,  # [images, classes], one-hot
        *,
        seeds: int,  # each has its own weights, examples and noise, the same for every rule
        draws: int,  # gradients per seed from which moments are computed
        examples: int,  # examples per seed from which the SNR is computed
        seed: int = 0,
        folder: Path | None = None,  # where measurements are stored, and read again
    ) -> None:
        self._draws, self._examples, self._folder = draws, examples, folder
        self._keys = jax.random.split(jax.random.key(seed), seeds)
        self._problem = cache(partial(make_problem, images=images, labels=labels))
        # Methods whose results are kept.
        self.measure, self._stage = cache(self._read_or_measure), cache(self._make_stage)
        self._stage_program, self._program = cache(self._make_stage_program), cache(self._make_program)

    def _read_or_measure(self, rule: str, setting: Setting) -> Measured:
        """Returns metrics, their errors (`..._error`) and theory (`theory_...`), `[seed, layers + 1]`."""
        if rule in DENSE_ALONE and setting.network != "dense":
            return {k: np.full_like(v, np.nan) for k, v in self.measure("backprop", setting).items()}
        name = "-".join([rule, *map(str, vars(setting).values())]) + ".npz"
        path = None if self._folder is None else self._folder / name
        if path is not None and path.exists():
            with np.load(path) as held:
                return dict(held)
        shapes = _shapes(setting)
        stage, program = self._stage(shapes, setting.updates), self._program(rule, shapes)
        found = jax.tree.map(np.asarray, program(self._keys, stage, setting.sigma, setting.num_samples))
        if path is not None:
            harness.write_whole(path, partial(_write, found))
        return found

    def measure_all(
        self, rules: Sequence[str], settings: Iterable[Setting], done: Callable[[str], Any]
    ) -> None:
        """Measures all rules at all settings, with two threads, so that one compiles while the other runs.

        Calls `done(rule)` after every measurement, from either thread.
        """
        groups: dict[Setting, list[Setting]] = defaultdict(list)
        for setting in settings:
            groups[_shapes(setting)].append(setting)

        def set_stages(shapes: Setting) -> None:
            for setting in groups[shapes]:
                self._stage(shapes, setting.updates)

        def measure_group(shapes: Setting, rule: str) -> None:
            for setting in groups[shapes]:
                self.measure(rule, setting)
                done(rule)

        with ThreadPoolExecutor(2) as pool:
            try:
                list(pool.map(set_stages, groups))
                list(pool.map(measure_group, *zip(*itertools.product(groups, rules), strict=True)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def sweep(self, name: str, rules: Sequence[str], settings: Sequence[Setting]) -> list[dict[str, Any]]:
        """Measures rules at settings that differ only in the field `name`; returns rows of the JSON file."""
        pairs = itertools.product(settings, rules)
        of_each = (rows_of(name, getattr(at, name), rule, self.measure(rule, at)) for at, rule in pairs)
        return list(itertools.chain.from_iterable(of_each))

    def flops(self, rule: str, setting: Setting) -> float:
        """Returns the operations of the matrix products of one gradient, as counted by `work_of`.

        An average of K gradients costs K times as much; a rule's own `num_samples` may share the clean pass.
        """
        problem = self._problem(_shapes(setting))
        made = make_rule(rule, problem.model, problem.loss, setting.sigma)
        x, y = problem.x[: setting.batch_size], problem.y[: setting.batch_size]
        params = jax.eval_shape(problem.model.init, self._keys[0])
        state = jax.eval_shape(made.init, self._keys[0], params, x)

        def gradient(key: Key, params: Params, state: Any) -> Params:
            return made.value_and_grad(key, params, state, x, y)[1]

        return work_of(jax.jit(gradient).trace(self._keys[0], params, state)).flops

    def _make_stage_program(self, shapes: Setting) -> Ensemble:
        of_seed = partial(_set_stage, self._problem(shapes), shapes.batch_size, self._examples)
        return ll.ensemble(of_seed, in_axes=(0, None, None, None))

    def _make_stage(self, shapes: Setting, updates: int) -> "_Stage":
        """Weights, examples and exact signals of all seeds after some updates, shared by all rules."""
        problem = self._problem(shapes)
        return self._stage_program(shapes)(self._keys, updates, problem.x, problem.y)

    def _make_program(self, rule: str, shapes: Setting) -> Ensemble:
        of_seed = partial(_measure_seed, rule, self._problem(shapes), self._draws)
        return ll.ensemble(of_seed, in_axes=(0, 0, None, None))


def _write(measured: Measured, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **measured)  # type: ignore[arg-type]


def _shapes(setting: Setting) -> Setting:
    """The setting without its traced fields: equal for settings that share their programs."""
    return replace(setting, sigma=1.0, num_samples=1, updates=0)


class _Stage(NamedTuple):
    """Problem of one seed: params before and after updates, a batch, further examples, and exact signals."""

    start: Params
    params: Params
    x: Array
    y: Array
    examples_x: Array
    examples_y: Array
    exact: Exact


def _set_stage(
    problem: Problem,
    batch_size: int,
    num_examples: int,
    key: Key,
    updates: Array,
    images: Array,
    labels: Array,
) -> _Stage:
    init_key, train_key, batch_key, _ = jax.random.split(key, 4)
    init_key, _ = jax.random.split(init_key)
    batch_key, examples_key = jax.random.split(batch_key)
    model, loss, data = problem.model, problem.loss, problem._replace(x=images, y=labels)
    start = model.init(init_key)
    params = weights_after(train_key, data, ll.backprop(model, loss), start, updates, batch_size)
    x, y = choose_batch(batch_key, data, batch_size)
    examples = choose_batch(examples_key, data, num_examples)
    return _Stage(start, params, x, y, *examples, exact_signals(model, loss, key, params, x, y))


def _measure_seed(
    name: str, problem: Problem, draws: int, key: Key, stage: _Stage, sigma: Array, num_samples: Array
) -> dict[str, Array]:
    model, (start, params, x, y, more_x, more_y, exact) = problem.model, stage
    init_key, *_, measure_key = jax.random.split(key, 4)
    draws_key, examples_key = jax.random.split(measure_key)
    _, state_key = jax.random.split(init_key)
    rule = averaged(make_rule(name, model, problem.loss, sigma), num_samples)
    state = rule.init(state_key, start, x)
    of_draws = measure_draws(rule, params, state, x, y, draws_key, draws, reference=exact.grads)
    of_examples = measure_examples(model, rule, params, state, more_x, more_y, examples_key)
    theory = predict(name, exact, num_samples)
    return {**of_draws, **of_examples, **{f"theory_{k}": v for k, v in theory.items()}}
