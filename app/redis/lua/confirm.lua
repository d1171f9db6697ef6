for _, move in ipairs(cmsgpack.unpack(ARGV[2])) do
    if redis.call('ZREM', move[1] .. ':writing', move[2]) == 1 then
        redis.call('ZADD', move[1] .. ':waiting', move[3], move[2])
    end
end
