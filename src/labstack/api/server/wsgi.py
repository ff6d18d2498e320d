"""The application that gunicorn loads."""

from labstack import settings
from labstack.api.app import create_app

app = create_app(settings.load())
