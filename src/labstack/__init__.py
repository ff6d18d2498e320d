"""Labstack: a machine-learning lab in three containers."""
