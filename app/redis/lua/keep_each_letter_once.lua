for _, letter in ipairs(cmsgpack.unpack(ARGV[2])) do
    if redis.call('SADD', KEYS[1], letter[1]) == 1 then run(letter[2]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return run(cmsgpack.unpack(ARGV[3]))
