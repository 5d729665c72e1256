"""Gradient descent with birth and death of neurons, over many seeds.

After the notebooks of the neuron birth-death paper (2019): does a population that resamples itself reach the
minimum sooner than one that only follows its gradient?
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from experiments.running import run_stage, side_by_side

NAME = "birth_death"


class Carry(NamedTuple):
    """State of a run between two measurements."""

    key: jax.Array
    target: Any
    params: Any
    population: ll.birth_death.State


def start_of(problem: Problem, key: jax.Array) -> Carry:
    """The start of a run: problem and student of a seed."""
    init_key, run_key = jax.random.split(key)
    target, params = problem.init(init_key)
    population = ll.birth_death.dynamics(0.0, axes=problem.axes, charges=problem.charges).init(params)
    return Carry(run_key, target, params, population)


def measure(problem: Problem, carry: Carry) -> dict[str, jax.Array]:
    """The loss, events so far, lineages that are left, and where the units are."""
    population = carry.population
    slots = jnp.arange(population.ancestor.shape[0])
    return {
        "loss": problem.loss(jax.random.fold_in(carry.key, 0), carry.target, carry.params),
        "killed": population.num_killed,
        "cloned": population.num_cloned,
        "lineages": jnp.sum(jnp.any(population.ancestor == slots[:, None], axis=1)),
        "places": problem.places(carry.params),
    }


def interval(
    problem: Problem, scheme: Scheme, config: Config, carry: Carry, start: Any, stop: Any, end: int
) -> Carry:
    """All steps from one measurement to the next."""
    last_event = end - min(problem.quiet_steps, end // 3)

    def step(number: jax.Array, carry: Carry) -> Carry:
        key, target, params, population = carry
        gradient_key, event_key = jax.random.split(jax.random.fold_in(key, number + 1))
        gradients = problem.gradients(gradient_key, target, params)
        params = jax.tree.map(lambda p, g: p - problem.learning_rate * g, params, gradients)
        alpha = problem.alphas[scheme.scheme] * scheme.factor
        dynamics = ll.birth_death.dynamics(
            jnp.where(number < last_event, alpha, 0.0),
            axes=problem.axes,
            charges=problem.charges,
            scheme=scheme.scheme,
            center=scheme.center,
            probability=config.probability,
            charge=config.charge,
            slots=config.slots,
            prior=problem.prior,
        )
        (params, population), _ = dynamics.update(event_key, params, population, gradients)
        return Carry(key, target, params, population)

    return jax.lax.fori_loop(start, stop, step, carry)


def measured_at(num_steps: int, records: int) -> np.ndarray:
    """Log-spaced steps from 1 to the last, none further apart than a fiftieth of the run."""
    logarithmic = np.geomspace(1, num_steps, records).round()
    linear = np.linspace(0, num_steps, 51)[1:].round()
    return np.unique(np.concatenate([logarithmic, linear]).clip(1)).astype(int)


def run_scheme(
    problem_name: Any, scheme_name: Any, config: Config, folder: Path, progress: tqdm
) -> xr.Dataset:
    """One scheme on one problem, all seeds."""
    problem, scheme = PROBLEMS[problem_name](config), SCHEMES[scheme_name]
    end = config.num_steps(problem_name)
    times = np.concatenate([[0], measured_at(end, config.records)])

    def init(key: jax.Array) -> Carry:
        return start_of(problem, key)

    def advance(carry: Carry, number: Any, times: Any) -> tuple[Carry, dict[str, jax.Array]]:
        carry = interval(problem, scheme, config, carry, times[number], times[number + 1], end)
        return carry, measure(problem, carry)

    def first(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        carry = start_of(problem, key)
        return measure(problem, carry), problem.targets(carry.target)

    progress.set_description(f"{problem_name}: {scheme_name}")
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    at_start, targets = ll.gather(ll.ensemble(first, batch_size=side_by_side())(keys))
    shapes = {name: value.shape[1:] for name, value in at_start.items()}
    stage = run_stage(folder, (keys,), init, advance, shapes, np.diff(times).tolist(), times, progress)
    variables: dict[str, Any] = {
        f"{problem_name}_targets": (("seed", f"{problem_name}_target", "coordinate"), targets)
    }
    units = {"places": (f"{problem_name}_unit", "coordinate")}
    for name, values in stage.metrics.items():
        whole = np.concatenate([at_start[name][:, None], values], axis=1)
        axes = ("seed", f"{problem_name}_step", *units.get(name, ()))
        variables[f"{problem_name}_{name}"] = (axes, whole.astype(np.float32))
    dataset = xr.Dataset(variables, {f"{problem_name}_step": times, "seed": np.arange(config.seeds)})
    of_scheme = [name for name in dataset.data_vars if not str(name).endswith("_targets")]
    return dataset.assign({v: dataset[v].expand_dims(scheme=[scheme_name]) for v in of_scheme})


def held(config: Config) -> harness.Held:
    """The populations of every seed; the test points of one and the differences of all units of a mixture."""
    each, once = [], [memory.floats(6, config.records)]  # as they are computed, in float64
    for name in config.problems:
        problem = PROBLEMS[name](config)
        each.append(jax.eval_shape(partial(start_of, problem), jax.random.key(0)))
        if name == "planted":
            once += [memory.floats(n, config.features) for n in (config.test_points, config.batch_size)]
            once.append(memory.floats(config.test_points, config.units))
        else:
            once.append(memory.floats(config.mixture_units, config.mixture_units))
    return harness.Held(each, once)


def run(config: Config) -> xr.Dataset:
    """Runs the whole comparison into `config.out` and returns its results."""
    harness.begin(config, held)
    pairs = {
        f"{problem}-{scheme}": (problem, scheme) for problem in config.problems for scheme in config.schemes
    }
    parts = harness.run_parts(
        config.out,
        "part",
        list(pairs),
        lambda name, folder, progress: run_scheme(*pairs[name], config, folder, progress),
        steps=[config.num_steps(problem) for problem, _ in pairs.values()],
        unit="step",
    )
    merged = xr.merge(parts, join="outer", compat="no_conflicts")
    results = merged.sel(scheme=list(config.schemes)).drop_encoding()
    results = results.assign_attrs(config=json.dumps(config.deciding()))
    harness.publish(config.out, NAME, config.deciding(), results, report)
    return results


def main() -> int:
    """The command line."""
    harness.use_all_cores()
    return harness.command_line(NAME, Config, run)


if __name__ == "__main__":
    sys.exit(main())
