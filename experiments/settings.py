"""What every experiment is told besides its own settings: where results go, and which processes take part."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments.processes import Meeting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all experiments have in common; none of them decides a result."""

    out: Path
    """Folder for config.json, results.nc, summary.json and the figures."""
    resume: bool = False
    """Go on with the run that stands in the folder, if there is one."""
    distributed: bool = False
    """Run on all hosts of a job, one process each, which share the folder. SLURM, Open MPI and GKE say who is
    who; elsewhere the next three do."""
    coordinator: str | None = None
    """HOST:PORT of process 0, reachable from all hosts."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this one is, from 0."""

    @property
    def meeting(self) -> Meeting | None:
        """Where the processes meet; None for one process alone."""
        told = (self.coordinator, self.processes, self.process)
        if not self.distributed:
            self._expect(
                "distributed", "to be given with --coordinator, --processes, --process", told == (None,) * 3
            )
            return None
        self._expect(
            "process", "--coordinator, --processes and --process, or none", told.count(None) in (0, 3)
        )
        if self.coordinator is not None and self.processes is not None and self.process is not None:
            self._expect("coordinator", "HOST:PORT", re.fullmatch(r".+:\d+", self.coordinator) is not None)
            self._expect("processes", "at least 1", self.processes >= 1)
            self._expect(
                "process", f"a number in 0..{self.processes - 1}", 0 <= self.process < self.processes
            )
        return Meeting(*told)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results."""
        common = {field.name for field in fields(Settings)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}

    def _expect(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)}")
