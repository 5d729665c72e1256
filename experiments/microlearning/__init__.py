"""The microlearning experiment: `python -m experiments.microlearning`."""
