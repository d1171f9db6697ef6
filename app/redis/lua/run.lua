local used
local function trim(stream, series, letters, bytes, added)
    local dropped = redis.call('XTRIM', stream, 'MAXLEN', letters)
    local size = redis.call('HINCRBY', 'dead_letters:sizes', stream, added)
    if size > bytes or size == added then
        -- Letters that were removed or expired are still in this sum, so the memory is measured.
        -- That takes milliseconds: room for a while is made, so that it seldom has to be.
        size = redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', 0) or 0
        while size > bytes * 15 / 16 do
            local left = redis.call('XLEN', stream)
            dropped = dropped + redis.call('XTRIM', stream, 'MAXLEN', math.floor(left * 15 / 16))
            size = left > 1 and redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', 0) or 0
        end
        redis.call('HSET', 'dead_letters:sizes', stream, size)
    end
    if dropped > 0 then redis.call('HINCRBY', 'metrics', series, dropped) end
    return dropped
end
local function run(command)
    if command[1] == 'TRIM' then return trim(unpack(command, 2)) end
    if command[1] == 'IN_TIME' then
        local time = redis.call('TIME')
        if time[1] + time[2] / 1000000 > command[2] then error('too late') end
        return
    end
    if command[1] == 'ROOM' then
        local memory = redis.call('INFO', 'memory')
        local most = tonumber(memory:match('maxmemory:(%d+)') or 0)
        local share = most > 0 and tonumber(memory:match('used_memory:(%d+)')) / most or 0
        if share > command[2] then error('little memory left') end
        used = tostring(share)
        return
    end
    return redis.call(unpack(command))
end
