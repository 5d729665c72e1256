"""Neuron birth-death against gradient descent, over many seeds."""
