local guesses = redis.call('INCR', KEYS[1])
if guesses == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
