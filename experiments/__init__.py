"""Experiments, one file a system: `python -m experiments.NAME`."""
