local asked = cmsgpack.unpack(ARGV[1])
local key = redis.call('GET', 'names:key')
if not key then
    key = asked.new_key
    redis.call('SET', 'names:key', key)
end
local function bucket_of(text, buckets)
    return tonumber(redis.sha1hex(key .. text):sub(1, 8), 16) % buckets
end

local limited = asked.sender ~= '' and redis.call('EXISTS', asked.loaded) == 1
local spending, room, spent, is_new, brought_up = nil, 0, {}, {}, {}
if limited then
    spending = 'names:spent:' .. asked.day .. ':' .. bucket_of(asked.sender, asked.spent_buckets)
    room = asked.bucket_size - redis.call('HLEN', spending)
    for kind in pairs(asked.budgets) do
        local number = redis.call('HGET', spending, asked.sender .. kind)
        spent[kind], is_new[kind] = tonumber(number or 0), not number
    end
end

local function is_known(kind, name)
    local known = 'names:known:' .. bucket_of(name, asked.known_buckets)
    if redis.call('SISMEMBER', known, name) == 1 then return true end
    if limited then
        if spent[kind] >= asked.budgets[kind] then return false end
        if is_new[kind] and room <= 0 then return false end
        if redis.call('SCARD', known) >= asked.bucket_size then return false end
        if is_new[kind] then is_new[kind], room = false, room - 1 end
        spent[kind] = spent[kind] + 1
        brought_up[kind] = true
    end
    redis.call('SADD', known, name)
    return true
end

local websites, found = {}, {}
for place, words in ipairs(asked.names) do
    local website, kind, name = unpack(words)
    if websites[website] == nil then websites[website] = is_known('website', website) end
    if not websites[website] then
        found[place] = 'website'
    else
        found[place] = is_known(kind, name) and '' or kind
    end
end
for kind in pairs(brought_up) do
    redis.call('HSET', spending, asked.sender .. kind, spent[kind])
    redis.call('EXPIRE', spending, asked.spent_seconds)
end
return found
