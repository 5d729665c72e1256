"""Measurements of rules at settings, with all seeds in one program, as datasets with named axes."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

import lax_learning as ll
from benchmarks.quality.measures import measure_draws, measure_examples
from benchmarks.quality.problems import Problem, choose_batch, make_problem, weights_after
from benchmarks.quality.rules import DENSE_ALONE, averaged, make_rule
from benchmarks.quality.settings import Setting
from benchmarks.quality.theory import Exact, exact_signals, predict
from benchmarks.work import work_of
from experiments import harness
from lax_learning._ensemble import Ensemble
from lax_learning.types import Key, Params

Measured = dict[str, np.ndarray]


class Bench:
    """Measures rules at settings, without measuring or compiling anything twice.

    Settings that differ only in sigma, number of averaged gradients or number of updates share a compiled
    program.

    Args:
      images: `[images, side, side]`, in 0..1.
      labels: `[images, classes]`, one-hot.
      seeds: number of seeds; each has its own weights, examples and noise, the same for every rule.
      draws: number of gradients per seed from which moments are computed.
      examples: number of examples per seed from which the SNR is computed.
      seed: base PRNG seed.
      folder: folder in which measurements are stored, and from which they are read again; by default none.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, seeds: int, draws: int, examples: int, seed: int = 0,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self._images, self._labels, self._draws, self._examples = images, labels, draws, examples
        self._keys = jax.random.split(jax.random.key(seed), seeds)
        self._measured: dict[tuple[str, Setting], Measured] = {}
        self._made: dict[Any, Any] = {}
        self._folder = folder

    def measure(self, rule: str, setting: Setting) -> Measured:
        """Returns every metric and its theoretical value (`theory_...`), `[seed, layers + 1]`."""
        if (rule, setting) not in self._measured:
            name = "-".join([rule, *map(str, vars(setting).values())]) + ".npz"
            path = None if self._folder is None else self._folder / name
            if rule in DENSE_ALONE and setting.network != "dense":
                found = {k: np.full_like(v, np.nan) for k, v in self.measure("backprop", setting).items()}
            elif path is not None and path.exists():
                with np.load(path) as held:
                    found = dict(held)
            else:
                stage, program = self._stage(setting), self._program(rule, setting)
                found = program(self._keys, stage, setting.sigma, setting.num_samples)
                found = jax.tree.map(np.asarray, found)
                if path is not None:
                    harness.write_whole(path, partial(_write, found))
            self._measured[rule, setting] = found
        return self._measured[rule, setting]

    def measure_all(
        self, rules: Sequence[str], settings: Iterable[Setting], done: Callable[[str, Setting], Any]
    ) -> None:
        """Measures all rules at all settings, with two threads, so that one compiles while the other runs.

        Calls `done(rule, setting)` after every measurement, from either thread.
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
        """Measures rules at settings that differ only in the field `name`.

        Returns:
          A variable for every metric, its standard error over draws and its theory, with the dimensions rule,
          `name`, seed and layer. Networks with fewer layers than the deepest one are padded with NaN.
        """
        depth = max(setting.depth for setting in settings) + 1
        found = [[self.measure(rule, setting) for setting in settings] for rule in rules]
        dims = ("rule", name, "seed", "layer")
        return xr.Dataset(
            {
                k: (dims, np.stack([[_padded(at[k], depth) for at in of] for of in found]))
                for k in found[0][0]
            },
            coords={
                "rule": list(rules),
                name: [getattr(setting, name) for setting in settings],
                "seed": np.arange(len(self._keys)),
                "layer": [*(str(i + 1) for i in range(depth)), "total"],
            },
            attrs={"draws": self._draws, "examples": self._examples},
        )

    def flops(self, rule: str, setting: Setting) -> float:
        """Returns the operations of the matrix products of one gradient, as counted by `work_of`.

        An average of K gradients costs K times as much; a rule's own `num_samples` may share the clean pass.
        """
        problem = make_problem(setting, self._images, self._labels)
        made = make_rule(rule, problem.model, problem.loss, setting.sigma)
        x, y = problem.x[: setting.batch_size], problem.y[: setting.batch_size]
        params = jax.eval_shape(problem.model.init, self._keys[0])
        state = jax.eval_shape(made.init, self._keys[0], params, x)

        def gradient(key: Key, params: Params, state: Any) -> Params:
            return made.value_and_grad(key, params, state, x, y)[1]

        return work_of(jax.jit(gradient).trace(self._keys[0], params, state)).flops

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Result of `make()`, called once per name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _stage(self, setting: Setting) -> "_Stage":
        """Weights, examples and exact signals at a setting, shared by all rules."""

        def program_of_shapes() -> tuple[Problem, Ensemble]:
            problem = make_problem(setting, self._images, self._labels)
            set_stage = _set_stage(problem, setting.batch_size, self._examples)
            return problem, ll.ensemble(set_stage, in_axes=(0, None, None, None))

        problem, program = self._once(_shapes(setting), program_of_shapes)
        name = _shapes(setting), setting.updates
        return self._once(name, lambda: program(self._keys, setting.updates, problem.x, problem.y))

    def _program(self, rule: str, setting: Setting) -> Ensemble:
        def program() -> Ensemble:
            problem = make_problem(setting, self._images, self._labels)
            of_seed = _of_seed(rule, problem.model, problem.loss, self._draws)
            return ll.ensemble(of_seed, in_axes=(0, 0, None, None))

        return self._once((rule, _shapes(setting)), program)


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
    """`[seed, layers + 1]` with NaN for missing layers, and the total at the end."""
    layers, total = of_layers[:, :-1], of_layers[:, -1:]
    missing = np.full((len(layers), depth - layers.shape[1]), np.nan)
    return np.concatenate([layers, missing, total], axis=1)
