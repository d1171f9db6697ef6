# One image for every process of the project; docker-compose.yml gives each its command.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 HOST=0.0.0.0
# By number too: Kubernetes can't tell that a name is not root's.
RUN useradd --system --uid 999 --create-home eventstream
# A volume that is mounted here takes its owner from it.
RUN install --directory --owner=eventstream /home/eventstream/var
WORKDIR /src

# Before the source, so that a change of the source alone installs nothing but the project anew.
COPY requirements/image.lock requirements/
RUN pip install --no-cache-dir --require-hashes --requirement requirements/image.lock

COPY setup.cfg setup.py celeryconfig.py wsgi.py ./
COPY app app
COPY tasks tasks
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

USER eventstream
WORKDIR /home/eventstream
CMD ["gunicorn", "--config", "python:app.web.server", "wsgi:app"]
