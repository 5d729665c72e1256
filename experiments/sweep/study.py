"""An Optuna study in a journal or a database, whose trials run in batches."""

import json
import os
import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np
import optuna
from optuna import pruners, samplers
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from experiments.folders import differing
from experiments.running import group_by_shape
from experiments.sweep.config import Config
from experiments.sweep.programs import Programs
from experiments.sweep.report import summary
from experiments.sweep.space import Space
from experiments.sweep.workers import Worker, finished, slot_of
from experiments.sweeping import Sweepable

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


class BySlot(samplers.BaseSampler):
    """Sampler that is seeded by the slot of each trial, so that no two workers draw the same numbers."""

    def __init__(self, name: str, seed: int) -> None:
        self._make, self._seed = SAMPLERS[name], seed
        self._sampler: samplers.BaseSampler = self._make(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(seed=(self._seed * 1_000_003 + 7919 * slot_of(trial)) % 2**31)

    def infer_relative_search_space(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return self._sampler.infer_relative_search_space(*arguments, **named)

    def sample_relative(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return self._sampler.sample_relative(*arguments, **named)

    def sample_independent(self, *arguments: Any, **named: Any) -> Any:
        return self._sampler.sample_independent(*arguments, **named)


class JournalLock(JournalFileSymlinkLock):
    """Lock of a journal that, when acquired, removes an incomplete last line left by a killed worker."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        held = super().acquire()
        with open(self._path, "rb+") as journal:
            journal.seek(max(0, journal.seek(0, os.SEEK_END) - 1))
            if journal.read() not in (b"", b"\n"):
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
        return held


class Journal(JournalFileBackend):
    """Journal file in the folder of a sweep, for workers on one host."""

    def __init__(self, path: str) -> None:
        super().__init__(path, JournalLock(path))
        self._path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            got = f"a damaged line in {self._path} ({error}); delete it to start again"
            raise ValueError(f"--out: expected the journal of a study, got {got}") from None


def storage_of(config: Config) -> BaseStorage:
    """Returns the journal in --out or the database of --storage; raises ValueError if it cannot be opened."""
    url = config.storage
    if url is None:
        return JournalStorage(Journal(str(config.out / "journal.log")))
    failure: Exception | None = None
    for _ in range(5):  # fails if two workers create the tables at the same time
        try:
            patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
            return RDBStorage(url, engine_kwargs=patient)
        except (SQLAlchemyError, ImportError) as error:
            failure = error
            time.sleep(0.2)
    raise ValueError(f"--storage: expected the URL of a database, got {url!r} ({failure})")


def open_study(config: Config, sweepable: Sweepable, deciding: dict[str, Any]) -> optuna.Study:
    """Opens or creates the study; raises ValueError if it has another configuration."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage_of(config),
        sampler=BySlot(config.sampler, config.seed),
        pruner=PRUNERS[config.pruner](),
        study_name=config.study or config.experiment,
        direction=sweepable.direction,
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(deciding))
    held = study.user_attrs.get("config", wanted)
    if named := differing(held, wanted):
        raise ValueError(f"--study: expected one of this configuration, got {study.study_name!r} ({named})")
    study.set_user_attr("config", wanted)
    return study


def run_study(config: Config, study: optuna.Study, space: Space, sweepable: Sweepable) -> None:
    """Runs trials until this and all other workers together have finished `config.trials`."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    programs = Programs(sweepable, keys, min(config.side_by_side, config.batch))
    progress = tqdm(total=config.trials, unit="trial", smoothing=0.05, desc=config.experiment)
    with progress, Worker(study, space, config.trials, config.patience) as worker:
        while _show(progress, study) < config.trials:
            trials = worker.claim(config.batch)
            values = [{**space.fixed, **trial.params} for trial in trials]
            for group in group_by_shape(values, list(sweepable.static)):
                _run_group(worker, programs, space.fixed, [trials[i] for i in group.members])
                _show(progress, study)
            if not trials:
                time.sleep(min(1.0, config.patience / 5))


def _show(progress: tqdm, study: optuna.Study) -> int:
    """Updates the progress bar, and returns the number of trials that all workers have finished."""
    done = len(finished(study))
    with suppress(ValueError):  # no trial is complete
        progress.set_postfix(best=f"{study.best_value:.4g}", refresh=False)
    progress.update(min(done, progress.total) - progress.n)
    return done


def _run_group(worker: Worker, programs: Programs, fixed: dict[str, Any], trials: list[Trial]) -> None:
    """Runs trials of one static shape and reports their scores to the study.

    The objective is the median over seeds; trials whose median is not finite are pruned.
    """

    def hopeless(place: int, chunk: int, scores: np.ndarray) -> bool:
        median = summary(scores)[0]
        return not np.isfinite(median) or worker.report(trials[place], chunk, median)

    scores, ended = programs.run([{**fixed, **trial.params} for trial in trials], hopeless)
    for trial, of_seeds, whole in zip(trials, scores, ended, strict=True):
        median = summary(of_seeds)[0]
        worker.tell(trial, median if whole and np.isfinite(median) else None, of_seeds.tolist())
