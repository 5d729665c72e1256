"""Quality of gradient estimates: rules, measures, theory and sweeps."""

from benchmarks.quality.measures import measure_draws
from benchmarks.quality.rules import make_rule

__all__ = ["make_rule", "measure_draws"]
