"""Decorrelated inputs under every rule, on MNIST."""
