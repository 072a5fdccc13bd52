-- Closes a subscription, or one model on it, for a time from now.
-- KEYS 1: the state (hash)
-- ARGV 1: model ('' the whole), 2: wait in ms, 3: state, 4: reason, 5: channel, 6: subscription
-- Answers 1 when it is closed for longer than before, else 0. What has ended is
-- taken out, and the whole key goes with the last cooldown.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends = now + ARGV[2]
local field = ARGV[1] == '' and 'cooldown_until' or 'cooldown:' .. ARGV[1]
local last = ends
local known = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 8) == 'cooldown' then
    local e = tonumber(all[i + 1])
    if all[i] == field then known = e end
    if e <= now then
      redis.call('HDEL', KEYS[1], all[i])
      if all[i] == 'cooldown_until' then redis.call('HDEL', KEYS[1], 'state', 'reason') end
    else
      last = math.max(last, e)
    end
  end
end
if ends <= known then return 0 end
redis.call('HSET', KEYS[1], field, string.format('%.0f', ends))
if ARGV[1] == '' then
  redis.call('HSET', KEYS[1], 'state', ARGV[3], 'reason', ARGV[4])
end
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
redis.call('PUBLISH', ARGV[5], 'state ' .. ARGV[6])
return 1
