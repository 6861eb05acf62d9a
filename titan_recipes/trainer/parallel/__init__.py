"""Parallelism, laid over an unchanged model from outside."""
