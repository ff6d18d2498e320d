"""Labstack: a machine-learning lab in three containers."""

__version__ = "0.1.0"
