"""Several workers on one study, which has slots `0 .. trials - 1`, each for one finished trial.

A worker adds free slots to Optuna's queue and asks for as many trials. If two workers queue the same slot,
the trial with the lower number takes it, and the other one is dropped before it runs. Heartbeats in the study
show which trials are running; trials without one are marked as failed, and their slots are queued again. The
slot seeds the sampler, so a repeated trial draws the same values unless more trials have finished since.

A trial may kill its worker. The study counts the workers that died on each slot: with every death, fewer of
these slots run together, and after `MOST_DEATHS` a slot is given up and its trials remain failed.
"""

import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.sweep.space import Space

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
NOT_FAILED = (TrialState.WAITING, TrialState.RUNNING, *FINISHED)
MOST_DEATHS = 10
"""High enough not to blame a trial for workers that are killed for other reasons."""
UNLESS_TAKEN = suppress(UpdateFinishedTrialError)  # by another worker, which considered this one dead


def slot_of(trial: FrozenTrial | Trial) -> int:
    """Returns the slot of a trial; -1 if it has none."""
    return trial.user_attrs.get("slot", -1)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the finished trial of each slot that has one, and a failed one of slots that were given up."""
    died, failed = deaths(study), _first(study, TrialState.FAIL)
    given_up = {slot: trial for slot, trial in failed.items() if died[slot] >= MOST_DEATHS}
    found = {**given_up, **_first(study, *FINISHED)}
    return [found[slot] for slot in sorted(found)]


def deaths(study: optuna.Study) -> Counter[int]:
    """Counts the workers that died while running a trial of each slot."""
    return Counter(slot for name, slot in study.user_attrs.items() if name.startswith("dead "))


def _first(study: optuna.Study, *states: TrialState) -> dict[int, FrozenTrial]:
    """Returns, for every slot, the trial with the lowest number among those in one of the states."""
    trials = study.get_trials(deepcopy=False, states=states)
    return {slot_of(trial): trial for trial in reversed(trials) if slot_of(trial) >= 0}


class Worker:
    """A worker on a study: a context that sends heartbeats, and releases unfinished trials on exit."""

    def __init__(self, study: optuna.Study, space: Space, num_trials: int, patience: float) -> None:
        self._study = study
        self._space = space
        self._num_trials = num_trials
        self._patience = patience
        self._name = f"worker {uuid4()}"
        self._mine: dict[int, Trial] = {}
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> "Worker":
        self._beats.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._beats.join()
        for trial in list(self._mine.values()):
            self._end(trial, TrialState.FAIL)

    def claim(self, count: int) -> list[Trial]:
        """Returns up to `count` trials to run, or none if other workers are running all remaining trials."""
        self._fail_dead()
        held = _first(self._study, *NOT_FAILED)
        free = [s for s in range(self._num_trials) if s not in held or held[s].state == TrialState.WAITING]
        for slot in self._chosen(free, count):
            if slot not in held:
                self._study.enqueue_trial(self._space.point(slot), user_attrs={"slot": slot})
            trial = self._study.ask(self._space.searched)  # possibly one queued by another worker
            self._mine[trial.number] = trial
        self._beat()
        fills = {trial.number for trial in _first(self._study, *NOT_FAILED).values()}
        for number in self._mine.keys() - fills:
            self._end(self._mine[number], TrialState.FAIL)
        return list(self._mine.values())

    def _chosen(self, free: list[int], count: int) -> list[int]:
        """Returns slots to run next: first those on which no worker died, then a few of the others."""
        died = deaths(self._study)
        for times in range(MOST_DEATHS):
            if chosen := [slot for slot in free if died[slot] == times]:
                most = count if times == 0 else max(count // 8**times, 1)
                return chosen[: max(most - len(self._mine), 0)]
        return []

    def report(self, trial: Trial, chunk: int, value: float) -> bool:
        """Reports the score of a trial after a chunk, and returns whether the pruner stops it."""
        with UNLESS_TAKEN:
            trial.report(value, chunk)
            return trial.should_prune()
        return True

    def tell(self, trial: Trial, value: float | None, scores: list[float]) -> None:
        """Finishes a trial; `value` is None if it was pruned."""
        with UNLESS_TAKEN:
            trial.set_user_attr("scores", scores)
        self._end(trial, TrialState.PRUNED if value is None else TrialState.COMPLETE, value)

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        with UNLESS_TAKEN:
            self._study.tell(trial, value, state=state, skip_if_finished=True)
        del self._mine[trial.number]

    def _beat(self) -> None:
        self._study.set_user_attr(self._name, {"seen": time.time(), "trials": list(self._mine)})

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._patience / 5):
            self._beat()

    def _fail_dead(self) -> None:
        """Marks the trials of workers without a heartbeat as failed."""
        beats = [beat for name, beat in self._study.user_attrs.items() if name.startswith("worker ")]
        recent = time.time() - self._patience
        alive = {number for beat in beats if beat["seen"] > recent for number in beat["trials"]}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if started < recent and trial.number not in self._mine.keys() | alive:
                with UNLESS_TAKEN:
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                slot = slot_of(trial)
                self._study.set_user_attr(f"dead {trial.number}", slot)
                if deaths(self._study)[slot] == MOST_DEATHS:
                    told = f"trial {slot} is given up: {MOST_DEATHS} workers died running {trial.params}"
                    print(f"\nwarning: {told}", file=sys.stderr)
