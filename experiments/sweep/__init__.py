"""Sweeps over the hyper-parameters of the experiments: `python -m experiments.sweep`."""
