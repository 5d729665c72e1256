"""A study of Optuna in a journal or a database, and its trials in batches."""

import json
import time
from typing import Any

import jax
import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from experiments import memory
from experiments.grouping import Group, group_by_shape
from experiments.reporting import median_interval
from experiments.sweep.config import Config
from experiments.sweep.journal import Journal
from experiments.sweep.programs import Programs
from experiments.sweep.samplers import PRUNERS, sampler_of
from experiments.sweep.space import Space
from experiments.sweep.workers import Worker, finished
from experiments.sweeping import Sweepable


def storage_of(config: Config) -> BaseStorage:
    """The journal in the folder, or the database that was asked for.

    Raises:
      ValueError: if there is no such database.
    """
    url = config.storage
    if url is None:
        return JournalStorage(Journal(config.out / "journal.log"))
    patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    tries = 5
    while True:  # two workers that make the tables at once hinder each other
        try:
            return RDBStorage(url, engine_kwargs=patient)
        except (SQLAlchemyError, ImportError) as error:
            tries -= 1
            if not tries or "://" not in url or isinstance(error, ImportError):
                raise ValueError(
                    f"--storage: expected the URL of a database, got {url!r} ({error})"
                ) from None
            time.sleep(0.2)


def open_study(config: Config, space: Space, sweepable: Sweepable, deciding: dict[str, Any]) -> optuna.Study:
    """The study, new or as it stands.

    Raises:
      ValueError: if another configuration made it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage_of(config),
        sampler=sampler_of(config, space),
        pruner=PRUNERS[config.pruner](),
        study_name=config.study or config.experiment,
        direction=sweepable.direction,
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(deciding))
    held = study.user_attrs.get("config", wanted)
    if held != wanted:
        differing = [
            f"{n}: {held.get(n)!r} there, {wanted[n]!r} here" for n in wanted if held.get(n) != wanted[n]
        ]
        raise ValueError(
            f"--study: expected one of this configuration, got {study.study_name!r} ({'; '.join(differing)})"
        )
    study.set_user_attr("config", wanted)
    return study


def best_of(study: optuna.Study) -> float | None:
    """The best value of a finished trial."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.value for trial in completed if trial.value is not None]
    return (max if study.direction.name == "MAXIMIZE" else min)(values) if values else None


def run_study(config: Config, study: optuna.Study, space: Space, sweepable: Sweepable) -> None:
    """Runs trials until `config.trials` are finished, by this worker and all others."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    programs = Programs(sweepable, keys, min(config.side_by_side, config.batch))
    progress = tqdm(total=config.trials, unit="trial", smoothing=0.05, desc=config.experiment)
    with progress, Worker(study, space, config.trials, config.patience) as worker:
        while True:
            trials = worker.claim(config.batch)
            for group, of_group in groups_of(trials, space, sweepable):
                run_group(worker, programs, group, of_group)
                show(progress, study)
            show(progress, study)
            if not trials:
                if len(finished(study)) >= config.trials:
                    return
                time.sleep(min(1.0, config.patience / 5))


def show(progress: tqdm, study: optuna.Study) -> None:
    """Moves the progress to what all workers have finished."""
    best = best_of(study)
    if best is not None:
        progress.set_postfix(best=f"{best:.4g}", refresh=False)
    progress.update(min(len(finished(study)), progress.total) - progress.n)


def groups_of(trials: list[Trial], space: Space, sweepable: Sweepable) -> list[tuple[Group, list[Trial]]]:
    """Trials of the same static shape together."""
    if not trials:
        return []
    configurations = [{**space.fixed, **trial.params} for trial in trials]
    groups = group_by_shape(configurations, list(sweepable.static))
    return [(group, [trials[i] for i in group.members]) for group in groups]


def run_group(worker: Worker, programs: Programs, group: Group, trials: list[Trial]) -> None:
    """Runs trials of one static shape and tells what came out.

    The objective is the median over seeds; a trial whose median is not finite is pruned.
    """
    pruned: set[int] = set()

    def hopeless(chunk: int, places: np.ndarray, scores: np.ndarray) -> np.ndarray:
        medians = np.median(scores, axis=1)
        finite = np.isfinite(medians)
        for place, median in zip(places[finite], medians[finite], strict=True):
            worker.report(trials[place], chunk, float(median))
        given_up = [not ok or worker.hopeless(trials[i]) for i, ok in zip(places, finite, strict=True)]
        pruned.update(places[given_up].tolist())
        return np.array(given_up)

    try:
        scores = programs.run(group.static, group.traced, hopeless)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not memory.out_of_memory(error):
            raise
        numbers = ", ".join(f"{n} = {v}" for n, v in group.static.items() if not isinstance(v, str))
        raise ValueError(
            f"--space: expected sizes that fit into memory, got {numbers} (out of memory); fewer --seeds or "
            "a smaller --batch need less"
        ) from None
    for i, (trial, of_seeds) in enumerate(zip(trials, scores, strict=True)):
        median, _, _ = summary(of_seeds)
        given_up = i in pruned or not np.isfinite(median)
        worker.tell(trial, None if given_up else median, of_seeds.tolist())


def summary(scores: np.ndarray) -> tuple[float, float, float]:
    """Median over seeds, and its 95 % interval by order statistics; NaN if one is NaN or there is none."""
    if not scores.size or np.isnan(scores).any():
        return float("nan"), float("nan"), float("nan")
    _, low, high = median_interval(scores)
    return float(np.median(scores)), low, high
