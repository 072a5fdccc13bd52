-- Writes a record that operators keep.
-- KEYS 1: the records of its kind (hash)
-- ARGV 1: id, 2: the version that it replaces, 0 where there must be none, 3: the
--      record, 4: how many there may be, 5: channel, 6: kind
-- Answers its version, 0 when another version stands there, -1 when there is no room
-- for one more. Sent a second time it changes nothing. The first version of a record is
-- above that of any that was removed before: who has read one of those fits none of the
-- new ones.
local old = redis.call('HGET', KEYS[1], ARGV[1])
local version, text = string.match(old or '', '^(%d+) (.*)$')
local replaces = tonumber(ARGV[2])
version = tonumber(version or 0)
if version > replaces and text == ARGV[3] then return version end
if version ~= replaces then return 0 end
local last = tonumber(redis.call('HGET', KEYS[1], ':last') or 0)
if not old then
  local count = redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], ':state') - redis.call('HEXISTS', KEYS[1], ':last')
  if count >= tonumber(ARGV[4]) then return -1 end
  version = last
end
local t = redis.call('TIME')
local state = t[1] * 1000000 + t[2]
state = math.max(state, tonumber(redis.call('HGET', KEYS[1], ':state') or 0) + 1)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', version + 1) .. ARGV[3], ':state', string.format('%.0f', state))
redis.call('PUBLISH', ARGV[5], ARGV[6])
return version + 1
