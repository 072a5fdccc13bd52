-- Removes a record that operators keep.
-- KEYS 1: the records of its kind (hash)
-- ARGV 1: id, 2: the version that it has, 0 for any, 3: channel, 4: kind
-- Answers 1 when it is gone by this, 0 when another version stands there, -1 when
-- there is none.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old then return -1 end
if ARGV[2] ~= '0' and string.match(old, '^%d+') ~= ARGV[2] then return 0 end
local t = redis.call('TIME')
local state = t[1] * 1000000 + t[2]
state = math.max(state, tonumber(redis.call('HGET', KEYS[1], ':state') or 0) + 1)
redis.call('HDEL', KEYS[1], ARGV[1])
local last = math.max(tonumber(redis.call('HGET', KEYS[1], ':last') or 0), tonumber(string.match(old, '^%d+') or 0))
redis.call('HSET', KEYS[1], ':state', string.format('%.0f', state), ':last', string.format('%.0f', last))
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
