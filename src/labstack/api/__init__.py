"""The Flask application that serves what the registry's roles say."""
