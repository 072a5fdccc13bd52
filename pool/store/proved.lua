-- Tells how a probe went.
-- KEYS 1: the state (hash)
-- ARGV 1: process, 2: 1 it succeeded, 0 it ended without a result, 3: how long a
--      success is remembered, in ms, 4: channel, 5: subscription, then what was
--      probed, as in cool.lua
-- Answers how many were changed. A cooldown that began meanwhile stays. The others
-- are told where one of them was refused for this probe: who did not ask has nothing
-- to learn from it, and asks when it comes to it. In a large fleet nobody has asked,
-- mostly, and each of them would read the state for nothing.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local changed, asked = 0, 0
local function over(field)
  return tonumber(string.match(redis.call('HGET', KEYS[1], field) or '', '^%d+') or 0) <= now
end
for i = 6, #ARGV do
  local before = changed
  local holder = string.match(redis.call('HGET', KEYS[1], 'probe' .. ARGV[i]) or '', '^(%S+) ')
  if holder == ARGV[1] then
    changed = changed + redis.call('HDEL', KEYS[1], 'probe' .. ARGV[i])
  end
  if ARGV[2] == '1' and over('cooldown' .. ARGV[i]) then
    redis.call('HDEL', KEYS[1], 'cooldown' .. ARGV[i])
    if over('cooldown_until') then redis.call('HDEL', KEYS[1], 'cooldown_until', 'state', 'reason') end
    redis.call('HSET', KEYS[1], 'opened' .. ARGV[i], string.format('%.0f %.0f 1 %s', now, now, ARGV[1]))
    changed = changed + 1
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
  end
  if changed > before then asked = asked + redis.call('HDEL', KEYS[1], 'probe?' .. ARGV[i]) end
end
if asked > 0 then redis.call('PUBLISH', ARGV[4], 'state ' .. ARGV[5]) end
return changed
