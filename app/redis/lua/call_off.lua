for place, key in ipairs(KEYS) do
    if not redis.call('ZSCORE', key, ARGV[place + 1]) then return 0 end
end
for place, key in ipairs(KEYS) do
    redis.call('ZREM', key, ARGV[place + 1])
    redis.call('SET', 'journal:withdrawn:' .. ARGV[place + 1], 1, 'EX', ARGV[1])
end
return 1
