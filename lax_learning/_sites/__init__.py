"""Sites: the operations of a JAX function that combine parameters with data."""
