"""Rules on plain and decorrelated inputs, on MNIST."""
