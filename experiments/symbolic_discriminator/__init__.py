"""Symbolic discriminator: critics that tell curves of formulas from those of untrained networks."""
