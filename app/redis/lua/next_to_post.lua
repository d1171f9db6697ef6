local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1)[1]
if found then redis.call('ZADD', KEYS[1], ARGV[1] + ARGV[2], found) end
return found
