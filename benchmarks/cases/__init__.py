"""All cases of the throughput benchmark. A new one is one entry in the list of its system."""

from benchmarks.cases import birth_death, microlearning, plasticity
from benchmarks.cases.case import Case, Sizes

CASES: list[Case] = [*microlearning.CASES, *plasticity.CASES, *birth_death.CASES]
SYSTEMS: tuple[str, ...] = tuple(dict.fromkeys(case.system for case in CASES))

__all__ = ["CASES", "SYSTEMS", "Case", "Sizes"]
