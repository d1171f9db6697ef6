local writing, waiting, taken, receiving = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', receiving, '-inf', now)
redis.call('ZREMRANGEBYSCORE', taken, '-inf', now - ARGV[2])
if redis.call('EXISTS', receiving, taken) == 0 then
    redis.call('ZREMRANGEBYSCORE', writing, '-inf', now - ARGV[1])
    redis.call('ZREMRANGEBYSCORE', waiting, '-inf', now - ARGV[1])
end
