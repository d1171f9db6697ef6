local room = ARGV[5] - redis.call('ZCARD', KEYS[1])
for n = 6, #ARGV, 2 do
    local name, number = ARGV[n], tonumber(ARGV[n + 1])
    if not redis.call('ZADD', KEYS[1], 'XX', 'INCR', number, name) then
        if room > 0 then
            room = room - 1
            redis.call('ZADD', KEYS[1], number, name)
        elseif number > tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]) then
            redis.call('ZPOPMIN', KEYS[1])
            redis.call('ZADD', KEYS[1], number, name)
        end
    end
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
local number = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
redis.call('PUBLISH', 'live:counted', table.concat({ARGV[1], ARGV[2], number, ARGV[3]}, ' '))
