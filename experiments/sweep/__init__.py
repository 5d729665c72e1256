"""Sweeps over the hyper-parameters of an experiment: `python -m experiments.sweep`."""
