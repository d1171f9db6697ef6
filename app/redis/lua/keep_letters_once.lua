local kept = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
for _, letter in ipairs(cmsgpack.unpack(ARGV[3])) do
    if letter[1] >= kept then run(letter[2]) end
end
if tonumber(ARGV[2]) > kept then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
