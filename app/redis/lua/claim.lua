local writing, waiting, taken, receiving = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local until_ = redis.call('TIME')[1] + ARGV[1]
local ours = {}
for place = 3, #ARGV do
    local id = ARGV[place]
    if redis.call('EXISTS', 'journal:withdrawn:' .. id) == 0 then
        redis.call('ZREM', writing, id)
        redis.call('ZREM', waiting, id)
        redis.call('ZADD', taken, until_, id)
        ours[#ours + 1] = id
    end
end
redis.call('ZREM', receiving, ARGV[2])
return ours
