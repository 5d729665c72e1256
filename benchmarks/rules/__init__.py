"""Comparison of all rules, each at its own best learning rate, at equal updates and at equal time."""
