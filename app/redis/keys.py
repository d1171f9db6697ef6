"""Every key that the collector uses in Redis. The named modules describe them in detail.

Journal (`app.journal`):
- `journal:{queue}`: a hash of batches by id; not with RabbitMQ, which then holds them;
- `journal:{queue}:waiting`, `journal:{queue}:taken`: sorted sets of batch ids;
- `journal:{queue}:writing`, `journal:{queue}:receiving`: with RabbitMQ, sorted sets of batch ids
  and of workers;
- `journal:{queue}:rung`: a worker has been called;
- `journal:withdrawn:{id}`: with RabbitMQ, a batch that was withdrawn;
- `journal:check`: written to test whether Redis accepts writes.

For operators:
- `metrics`: a hash of operational counters (`app.redis.counters`);
- `dead_letters:events`, `dead_letters:batches`: streams (`app.redis.dead_letters`);
- `dead_letters:kept:{batch}`, `dead_letters:kafka`: what was kept, so that nothing is kept twice;
- `dead_letters:sizes`: the memory of the dead letters, which is limited;
- `guesses:{network}`: wrong passwords (`app.redis.guesses`);
- `session:{digest}`: open sessions (`app.web.sessions`).

For viewers of the live stream (`app.redis.live`, `app.redis.spikes`):
- `live:minute:{minute}:{queue}`, `live:own_minute:{minute}:{queue}`, `live:folds`, `live:told`:
  recent counts;
- `spikes:announced:{name}`, `spikes:minute:{minute}`, `spikes:latest`, `spikes:to_post`;
- `drops:{hour}`: whether an hour has been searched for drops (`app.redis.drops`).

For senders:
- `names:known:{bucket}`, `names:spent:{day}:{bucket}`, `names:key`, `names:loaded`: budgets of new
  names (`app.redis.known_names`);
- `LIMITS:{limit}`: requests within the rate limit (`app.web.rate_limit`).

For the workers:
- `archive:turn`: the turn to rewrite the archive (`app.outputs.archive`);
- `page_view`, `ad_impression`, `ad_click`, `maintenance`, `_kombu.{name}`, `unacked{name}`:
  Celery's own queues of messages, if Redis is the broker.
"""
