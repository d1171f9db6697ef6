local told = #KEYS
for n = 6, #ARGV, 3 do
    local key, name, number = KEYS[tonumber(ARGV[n])], ARGV[n + 1], tonumber(ARGV[n + 2])
    if not redis.call('ZADD', key, 'XX', 'INCR', number, name) then
        if redis.call('ZCARD', key) < tonumber(ARGV[5]) then
            redis.call('ZADD', key, number, name)
        elseif number > tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) then
            redis.call('ZPOPMIN', key)
            redis.call('ZADD', key, number, name)
        end
    end
end
for place = 1, told - 1 do redis.call('EXPIRE', KEYS[place], ARGV[4]) end
local number = redis.call('HINCRBY', KEYS[told], ARGV[1], 1)
redis.call('PUBLISH', 'live:counted', table.concat({ARGV[1], ARGV[2], number, ARGV[3]}, ' '))
