"""The symbolic discriminator: what tells curves of formulas from those of untrained networks."""
