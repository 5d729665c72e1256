"""Neuron birth-death compared with gradient descent, over many seeds."""
