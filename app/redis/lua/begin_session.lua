redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
