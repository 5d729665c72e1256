"""Plasticity tables, meta-learned on half-spaces and transferred to MNIST."""
