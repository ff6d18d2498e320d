"""gunicorn's configuration, worker and entry point."""
