"""Quality of gradient estimates: rules, measures, theory and sweeps, for use in notebooks."""

from benchmarks.quality.config import Config
from benchmarks.quality.measures import METRICS, measure_draws, measure_examples
from benchmarks.quality.problems import Problem, make_problem, pooled_images
from benchmarks.quality.rules import RULES, averaged, make_rule
from benchmarks.quality.settings import SWEEPS, Setting, Sweep
from benchmarks.quality.sweeps import Bench
from benchmarks.quality.theory import THEORY, predict

__all__ = [
    "METRICS",
    "RULES",
    "SWEEPS",
    "THEORY",
    "Bench",
    "Config",
    "Problem",
    "Setting",
    "Sweep",
    "averaged",
    "make_problem",
    "make_rule",
    "measure_draws",
    "measure_examples",
    "pooled_images",
    "predict",
]
