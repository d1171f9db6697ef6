redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
for _, command in ipairs(cmsgpack.unpack(ARGV[1])) do run(command) end
return run(cmsgpack.unpack(ARGV[2]))
