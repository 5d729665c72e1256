"""Gradient descent with and without birth and death of neurons, over many seeds.

Based on the notebooks of the neuron birth-death paper (2019): does a population whose neurons are resampled
reach the minimum sooner than one that only follows its gradient?
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory
from experiments.birth_death import report
from experiments.birth_death.config import Config
from experiments.birth_death.problems import PROBLEMS, SCHEMES, Problem, Scheme
from experiments.checkpoints import save_params
from experiments.running import Run, collect, run_members
from experiments.sweeping import Program, Sweepable, program_of

Carry = tuple[jax.Array, Any, Any, ll.birth_death.State]  # key, target, params, population


def start_of(problem: Problem, key: jax.Array) -> Carry:
    """Draws the target and the initial population of one seed."""
    init_key, run_key = jax.random.split(key)
    target, params = problem.init(init_key)
    population = ll.birth_death.dynamics(0.0, axes=problem.axes, charges=problem.charges).init(params)
    return run_key, target, params, population


def run_of(problem: Problem, scheme: Scheme, config: Config, times: np.ndarray) -> Run:
    """Returns the run of one seed; its step i makes the gradient steps from `times[i]` to `times[i + 1]`."""
    end, (kind, center, factor) = int(times[-1]), scheme
    last_event = end - min(problem.quiet_steps, end // 3)

    def update(number: jax.Array, carry: Carry) -> Carry:
        key, target, params, population = carry
        gradient_key, event_key = jax.random.split(jax.random.fold_in(key, number + 1))
        gradients = problem.gradients(gradient_key, target, params)
        params = jax.tree.map(lambda p, g: p - problem.learning_rate * g, params, gradients)
        alpha = jnp.where(number < last_event, problem.alphas[kind] * factor, 0.0)
        dynamics = ll.birth_death.dynamics(
            alpha, axes=problem.axes, charges=problem.charges,
            scheme=kind, center=center, probability=config.probability,
            charge=config.charge, slots=config.slots, prior=problem.prior,
        )  # fmt: skip
        (params, population), _ = dynamics.update(event_key, params, population, gradients)
        return key, target, params, population

    def step(carry: Carry, number: Any, shared: Any) -> tuple[Carry, dict[str, jax.Array]]:
        start, stop = (jnp.asarray(times)[number + i] for i in (0, 1))
        return jax.lax.fori_loop(start, stop, update, carry), {}

    def measure(carry: Carry, number: Any, shared: Any) -> dict[str, jax.Array]:
        """Measures the loss, kills and clones so far, surviving lineages, and places of units and targets."""
        key, target, params, population = carry
        slots = jnp.arange(population.ancestor.shape[0])
        return {
            "loss": problem.loss(jax.random.fold_in(key, 0), target, params),
            "killed": population.num_killed,
            "cloned": population.num_cloned,
            "lineages": jnp.sum(jnp.any(population.ancestor == slots[:, None], axis=1)),
            "places": problem.places(params),
            "targets": problem.targets(target),
        }

    return Run(lambda key, shared: start_of(problem, key), step, len(times) - 1, measure)


def measured_at(num_steps: int, records: int) -> np.ndarray:
    """Returns log-spaced steps from 1 to the last, at most a fiftieth of the run apart."""
    logarithmic = np.geomspace(1, num_steps, records).round()
    linear = np.linspace(0, num_steps, 51)[1:].round()
    return np.unique(np.concatenate([logarithmic, linear]).clip(1)).astype(int)


def run_scheme(name: str, config: Config, data: Any, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs one scheme on one problem for all seeds."""
    problem_name, scheme_name = name.split("-")
    progress.set_description(f"{problem_name}: {scheme_name}")
    times = np.concatenate([[0], measured_at(config.num_steps(problem_name), config.records)])
    run = run_of(PROBLEMS[problem_name](config), SCHEMES[scheme_name], config, times)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    stage = run_members(run, (keys,), (), folder, progress, np.diff(times).tolist())
    _, _, params, _ = stage.state
    save_params(config.out, name, collect(params, config.seeds))
    targets = stage.metrics.pop("targets")[:, 0]
    axes = ("seed", f"{problem_name}_step", f"{problem_name}_unit", "coordinate")
    variables = {f"{problem_name}_{n}": (axes[: v.ndim], v) for n, v in stage.metrics.items()}
    results = xr.Dataset(variables, {f"{problem_name}_step": times, "seed": np.arange(config.seeds)})
    results = results.expand_dims(scheme=[scheme_name])
    return results.assign(
        {f"{problem_name}_targets": (("seed", f"{problem_name}_target", "coordinate"), targets)}
    )


def held(config: Config, data: Any) -> harness.Held:
    """Populations of all seeds, and the largest arrays of one: test points, or pairs of mixture units."""
    problems = [PROBLEMS[name](config) for name in config.problems]
    each = [jax.eval_shape(partial(start_of, problem), jax.random.key(0)) for problem in problems]
    sizes = [(6, config.records)]  # times of measurements, computed in float64
    if "planted" in config.problems:
        sizes += [(n, config.features) for n in (config.test_points, config.batch_size)]
        sizes.append((config.test_points, config.units))
    if set(config.problems) != {"planted"}:
        sizes.append((config.mixture_units, config.mixture_units))
    return harness.Held(each, [memory.floats(*size) for size in sizes])


EXPERIMENT = harness.Experiment(
    name="birth_death",
    config=Config,
    report=report,
    kind="part",
    unit="step",
    parts=lambda config: {
        f"{name}-{scheme}": config.num_steps(name) for name in config.problems for scheme in config.schemes
    },
    held=held,
    run_part=run_scheme,
    merge=lambda config, parts: harness.joined(parts, "scheme", config.schemes),
)
run, main = EXPERIMENT.run, EXPERIMENT.main


CHUNKS = 5


def swept(static: Mapping[str, Any]) -> Program:
    """Run of one scheme on one problem; a chunk is a fifth of its steps."""
    config = Config(units=static["units"], batch_size=static["batch_size"])
    problem, scheme = PROBLEMS[static["problem"]](config), SCHEMES[static["scheme"]]
    times = -(-static["steps"] // CHUNKS) * np.arange(CHUNKS + 1)

    def run(traced: dict[str, jax.Array]) -> Run:
        alphas: Any = dict.fromkeys(problem.alphas, traced["alpha"])
        one = problem._replace(alphas=alphas, learning_rate=traced["learning_rate"])
        return run_of(one, scheme, config, times)

    return program_of(run, lambda found, measured: measured["loss"], CHUNKS, ())


SWEEPABLE = Sweepable(
    "final loss",
    "minimize",
    {"alpha": 1.0, "learning_rate": 0.02},
    {
        "scheme": ("clone", *(name for name in SCHEMES if name != "clone")),
        "problem": tuple(PROBLEMS),
        "steps": 1_000,
        "units": 50,
        "batch_size": 100,
    },
    swept,
)

if __name__ == "__main__":
    sys.exit(main())
