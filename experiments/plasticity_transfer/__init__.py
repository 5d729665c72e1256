"""Plasticity tables that are meta-learned on half-spaces and transferred to MNIST."""
