"""Turns batches into counts, for workers and consumers. Nothing here knows about Celery."""
