"""The loops people run today: one network, one seed, NumPy in float64 or eager PyTorch.

They import nothing of the library. `rules` is what an expert writes in plain JAX for one network.
"""
