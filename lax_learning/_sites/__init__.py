"""Sites: where parameters meet data in any JAX function."""
