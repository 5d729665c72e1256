"""An Optuna study in a journal or a database, whose trials run in batches."""

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
import xarray as xr
from optuna import pruners, samplers
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from experiments.folders import changes, named_if_damaged
from experiments.running import group_by_shape
from experiments.sweep.config import Config
from experiments.sweep.programs import Programs
from experiments.sweep.report import as_dataset, summary
from experiments.sweep.space import Space
from experiments.sweep.workers import Worker, finished, slot_of

SAMPLERS = {
    "tpe": partial(samplers.TPESampler, constant_liar=True),
    "random": samplers.RandomSampler,
    "grid": samplers.RandomSampler,  # not used: trials are queued with their points
    "cmaes": partial(samplers.CmaEsSampler, warn_independent_sampling=False),
}
PRUNERS = {
    "median": partial(pruners.MedianPruner, n_startup_trials=8),
    "halving": pruners.SuccessiveHalvingPruner,
    "none": pruners.NopPruner,
}


class BySlot:
    """Sampler that is seeded by the slot of each trial, so that no two workers draw the same numbers."""

    def __init__(self, name: str, seed: int) -> None:
        self._make, self._seed = SAMPLERS[name], seed
        self._sampler = self._make(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(seed=(self._seed * 1_000_003 + 7919 * slot_of(trial)) % 2**31)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


class Journal(JournalFileBackend):
    """Journal file in the folder of a sweep, for workers on one host."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with named_if_damaged(self._path, "the journal of a study", "delete it to start again"):
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends to the journal, in place of an incomplete last line left by a killed worker."""
        with self._path.open("rb+") as journal:
            with suppress(OSError):  # a file system without locks, on which sweeps have one worker
                fcntl.flock(journal, fcntl.LOCK_EX)
            journal.seek(max(0, journal.seek(0, os.SEEK_END) - 1))
            if journal.read() not in (b"", b"\n"):
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
            super().append_logs(logs)


def storage_of(config: Config) -> BaseStorage:
    """Returns the journal in --out or the database of --storage; raises ValueError if it cannot be opened."""
    url = config.storage
    if url is None:
        return JournalStorage(Journal(config.out / "journal.log"))
    failure: Exception | None = None
    for _ in range(5):  # fails if two workers create the tables at the same time
        try:
            patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
            return RDBStorage(url, engine_kwargs=patient)
        except (SQLAlchemyError, ImportError) as error:
            failure = error
            time.sleep(0.2)
    raise ValueError(f"--storage: expected the URL of a database, got {url!r} ({failure})")


def open_study(config: Config, space: Space) -> optuna.Study:
    """Opens or creates the study; raises ValueError if it has another configuration."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: Any = BySlot(config.sampler, config.seed)
    study = optuna.create_study(
        storage=storage_of(config),
        sampler=sampler,
        pruner=PRUNERS[config.pruner](),
        study_name=config.study or config.experiment,
        direction=space.sweepable.direction,
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(config.deciding()))
    if named := changes(study.user_attrs.get("config", wanted), wanted):
        raise ValueError(f"--study: expected one of this configuration, got {study.study_name!r} ({named})")
    study.set_user_attr("config", wanted)
    return study


def run_study(part: str, config: Config, space: Space, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs trials until this and all other workers together have finished `config.trials`."""
    progress.set_description(config.experiment)
    study = open_study(config, space)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    programs = Programs(space.sweepable, keys, min(config.side_by_side, config.batch))
    with Worker(study, space, config.trials, config.patience) as worker:
        while _show(progress, study) < config.trials:
            trials = worker.claim(config.batch)
            values = [{**space.fixed, **trial.params} for trial in trials]
            for group in group_by_shape(values, list(space.sweepable.static)):
                _run_group(worker, programs, {trials[i]: values[i] for i in group.members})
                _show(progress, study)
            if not trials:
                time.sleep(min(1.0, config.patience / 5))
    return as_dataset(study, space)


def _show(progress: tqdm, study: optuna.Study) -> int:
    """Updates the progress bar, and returns the number of trials that all workers have finished."""
    done = len(finished(study))
    with suppress(ValueError):  # no trial is complete
        progress.set_postfix(best=f"{study.best_value:.4g}", refresh=False)
    progress.update(min(done, progress.total) - progress.n)
    return done


def _run_group(worker: Worker, programs: Programs, values: dict[Trial, dict[str, Any]]) -> None:
    """Runs trials of one static shape and reports their scores to the study.

    The objective is the median over seeds; trials whose median is not finite are pruned.
    """
    trials = list(values)

    def hopeless(place: int, chunk: int, scores: np.ndarray) -> bool:
        median = summary(scores)[0]
        return not np.isfinite(median) or worker.report(trials[place], chunk, median)

    scores, ended = programs.run(list(values.values()), hopeless)
    for trial, of_seeds, whole in zip(trials, scores, ended, strict=True):
        median = summary(of_seeds)[0]
        worker.tell(trial, median if whole and np.isfinite(median) else None, of_seeds.tolist())
