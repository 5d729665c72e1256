"""Reference implementations without the library: NumPy, eager PyTorch, plain JAX and evosax, for one seed.

They do the same work as the public code that they follow, including what makes it slow.
"""
