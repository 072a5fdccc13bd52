-- Writes a record that operators keep.
-- KEYS 1: the records of its kind (hash)
-- ARGV 1: id, 2: the version that it replaces, 0 where there must be none, 3: the
--      record behind its new version, 4: how many there may be, 5: channel, 6: kind
-- Answers 1 when it stands there, 0 when another version does, -1 when there is no
-- room for one more. Sent a second time it changes nothing.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old == ARGV[3] then return 1 end
if (old and string.match(old, '^%d+') or '0') ~= ARGV[2] then return 0 end
if not old and redis.call('HLEN', KEYS[1]) > tonumber(ARGV[4]) then return -1 end
local t = redis.call('TIME')
local state = t[1] * 1000000 + t[2]
state = math.max(state, tonumber(redis.call('HGET', KEYS[1], ':state') or 0) + 1)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], ':state', string.format('%.0f', state))
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
