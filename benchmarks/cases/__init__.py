"""All cases of the throughput benchmark. To add one, append it to the list of its system."""

from benchmarks.cases import birth_death, decorrelation, microlearning, peers, plasticity, symbolic
from benchmarks.cases.case import Case, Sizes

CASES: list[Case] = [
    *microlearning.CASES, *birth_death.CASES, *plasticity.CASES, *decorrelation.CASES, *symbolic.CASES,
    *peers.CASES,
]  # fmt: skip
SYSTEMS: tuple[str, ...] = tuple(dict.fromkeys(case.system for case in CASES))

__all__ = ["CASES", "SYSTEMS", "Case", "Sizes"]
