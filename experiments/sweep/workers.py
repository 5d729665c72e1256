"""Many workers on one study: no trial is lost, none is done twice, and no lock is needed.

Every storage numbers trials one after another, and what a trial holds from its start is there for all who
read later. So everybody can tell which trials count: of those that have not failed the first N, and of
trials with the same origin the first. A worker that finds its own not to count drops it before it runs.
A worker shows that it lives by a time in the study. Trials of one that does not are failed, and a failed
trial that was not dropped is taken up again under a new number with the same origin.
"""

import threading
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from experiments.sweep.space import Space

ATTEMPTS = 3
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def origin(trial: FrozenTrial) -> int:
    """The number under which a trial was first tried."""
    return trial.user_attrs.get("origin", trial.number)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """All finished trials."""
    return study.get_trials(deepcopy=False, states=FINISHED)


class Worker:
    """One of the workers on a study; a context that beats, and gives unfinished trials back at its end."""

    def __init__(self, study: optuna.Study, space: Space, num_trials: int, patience: float) -> None:
        self._study = study
        self._space = space
        self._num_trials = num_trials
        self._patience = patience
        self._name = f"worker {uuid4()}"
        self._mine: dict[int, Trial] = {}
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Worker":
        self._beats.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._beats.join()
        for trial in list(self._mine.values()):
            self._fail(trial.number)

    def _beat(self) -> None:
        while True:
            self._study.set_user_attr(self._name, time.time())
            if self._ended.wait(self._patience / 5):
                return

    def claim(self, count: int) -> list[Trial]:
        """Up to `count` trials to run: those of dead workers first; none if others run all that are left."""
        self._fail_dead()
        again = self._take_up(self._trials(), count)
        held = sum(trial.state != TrialState.FAIL for trial in self._trials())
        fresh = min(count - len(again), self._num_trials - held)
        self._mine.update({trial.number: trial for trial in again})
        for _ in range(fresh):
            trial = self._study.ask(self._space.searched)
            self._mine[trial.number] = trial
            trial.set_user_attr("worker", self._name)
        trials = self._trials()
        for trial in list(self._mine.values()):
            if not counts(trials, trial.number, self._num_trials):
                trial.set_user_attr("dropped", True)
                self._fail(trial.number)
        return list(self._mine.values())

    def report(self, trial: Trial, chunk: int, value: float) -> None:
        """Tells the pruner how far a trial is, unless another worker has taken it."""
        with suppress(UpdateFinishedTrialError):
            trial.report(value, chunk)

    def hopeless(self, trial: Trial) -> bool:
        """Returns whether the pruner gives a trial up."""
        return trial.should_prune()

    def tell(self, trial: Trial, value: float | None, scores: list[float]) -> None:
        """Finishes a trial, with no value if it was pruned, unless another worker has taken it."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr("scores", scores)
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self._study.tell(trial, value, state=state, skip_if_finished=True)
        self._mine.pop(trial.number)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _fail(self, number: int, state: TrialState = TrialState.FAIL) -> None:
        with suppress(UpdateFinishedTrialError):
            self._study.tell(number, state=state, skip_if_finished=True)
        self._mine.pop(number, None)

    def _fail_dead(self) -> None:
        """Fails the trials of workers without a sign of life; one that no worker survives is pruned."""
        beats = self._study.user_attrs
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and trial.number not in self._mine:
                start = trial.datetime_start
                began = start.timestamp() if start else 0.0
                seen = max(beats.get(trial.user_attrs.get("worker", ""), 0.0), began)
                if time.time() - seen > self._patience:
                    hopeless = trial.user_attrs.get("attempt", 1) >= ATTEMPTS
                    self._fail(trial.number, TrialState.PRUNED if hopeless else TrialState.FAIL)

    def _take_up(self, trials: list[FrozenTrial], count: int) -> list[Trial]:
        """New trials in place of failed ones that were not dropped and that nobody has taken up yet."""
        kept = [trial for trial in trials if "dropped" not in trial.user_attrs]
        latest = {origin(trial): trial for trial in kept}
        failed = [trial for trial in latest.values() if trial.state == TrialState.FAIL]
        if not failed:
            return []
        for trial in failed[:count]:
            again = {
                "origin": origin(trial),
                "attempt": trial.user_attrs.get("attempt", 1) + 1,
                "worker": self._name,
            }
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=again,
                    system_attrs=trial.system_attrs,
                )
            )
        taken = [
            trial
            for trial in self._trials()
            if trial.state == TrialState.RUNNING
            and trial.number >= len(trials)
            and trial.user_attrs.get("worker") == self._name
        ]
        made = [Trial(self._study, trial._trial_id) for trial in taken]
        for trial in made:
            for name, distribution in self._space.searched.items():
                trial._suggest(name, distribution)  # as `ask` does; what was drawn before stays
        return made


def counts(trials: list[FrozenTrial], number: int, num_trials: int) -> bool:
    """Returns whether a trial is to be run: the first `num_trials` that have not failed, no origin twice."""
    before = [trial for trial in trials if trial.number < number and trial.state != TrialState.FAIL]
    own = next(trial for trial in trials if trial.number == number)
    return len(before) < num_trials and all(origin(trial) != origin(own) for trial in before)
