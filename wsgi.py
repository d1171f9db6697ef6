"""The WSGI application, for gunicorn: `gunicorn --config python:app.web.server wsgi:app`."""

from app.errors import exiting
from app.web.application import create_app

with exiting():
    app = create_app()
