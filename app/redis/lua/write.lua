for _, command in ipairs(cmsgpack.unpack(ARGV[1])) do run(command) end
local found = {used or ''}
local function due(key, place)
    return redis.call('ZRANGE', key, place, place, 'WITHSCORES')[2] or '0'
end
for place = 1, #KEYS, 2 do
    local key, rung = KEYS[place], KEYS[place + 1]
    found[#found + 1] = redis.call('ZCARD', key)
    found[#found + 1] = rung ~= '' and redis.call('SETNX', rung, 1) or 0
    found[#found + 1] = due(key, 0)
    found[#found + 1] = due(key, -1)
end
return found
