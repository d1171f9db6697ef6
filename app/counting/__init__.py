"""How batches become counts: the pipeline of workers and consumers. Nothing here knows Celery."""
