"""The `labstack` command."""
