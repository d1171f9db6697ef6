"""The WSGI application, for gunicorn: `gunicorn --config python:app.web.server wsgi:app`."""

from app.web.application import create_app

app = create_app()
