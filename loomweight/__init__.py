"""Loomweight: weights of neural networks, generated on demand."""

__version__ = "0.1.0"
