local journal, waiting, taken = KEYS[1], KEYS[2], KEYS[3]
local now = tonumber(redis.call('TIME')[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', taken, '-inf', now)) do
    redis.call('ZREM', taken, id)
    redis.call('ZADD', waiting, now, id)
end
local found, bytes, late = {}, 0, nil
while #found < 2 * ARGV[1] and bytes < tonumber(ARGV[2]) do
    local id, due = unpack(redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES'))
    if not id then break end
    local is_late = tonumber(due) >= tonumber(ARGV[5])
    if is_late and ARGV[6] == 'never' or found[1] and is_late ~= late then break end
    late = is_late
    redis.call('ZREM', waiting, id)
    local payload = redis.call('HGET', journal, id)
    if payload then
        redis.call('ZADD', taken, now + ARGV[3], id)
        found[#found + 1], found[#found + 2] = id, payload
        bytes = bytes + #payload
    end
end
if ARGV[4] == 'stops' and not found[1] then redis.call('DEL', KEYS[4]) end
return {late and 1 or 0, found}
