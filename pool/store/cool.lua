-- Closes what a subscription's state is about for a time from now.
-- KEYS 1: the state (hash)
-- ARGV 1: what is closed: '_subscription' it alone, '_domain' all that share its
--      limits, or ':' and a model, 2: wait in ms, 3: state, 4: reason, 5: channel,
--      6: subscription, 7: how long a success is remembered, in ms
-- Answers 1 when it is closed for longer than before, else 0. What has ended is
-- taken out, and the whole key goes with the last cooldown. cooldown_until, with
-- its state and reason, is for people: the later of what closes the whole
-- subscription.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends = now + ARGV[2]
local last = math.max(ends, now + redis.call('PTTL', KEYS[1]))
local known = 0
local shown = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local name, value = all[i], all[i + 1]
  local over
  if string.sub(name, 1, 8) == 'cooldown' then
    over = tonumber(string.match(value, '^%d+') or 0)
    if name == 'cooldown' .. ARGV[1] then known = over end
    if name == 'cooldown_until' then shown = over end
  elseif string.sub(name, 1, 5) == 'probe' then
    over = tonumber(string.match(value, ' (%d+)$'))
  elseif string.sub(name, 1, 6) == 'opened' then
    over = tonumber(string.match(value, '^%d+')) + ARGV[7]
  end
  if over and over <= now then
    redis.call('HDEL', KEYS[1], name)
    if name == 'cooldown_until' then redis.call('HDEL', KEYS[1], 'state', 'reason') end
  end
end
if ends <= known then return 0 end
local value = string.format('%.0f', ends)
if string.sub(ARGV[1], 1, 1) ~= ':' then
  if ends > shown then redis.call('HSET', KEYS[1], 'cooldown_until', value, 'state', ARGV[3], 'reason', ARGV[4]) end
  value = value .. ' ' .. ARGV[3] .. ' ' .. ARGV[4]
end
redis.call('HSET', KEYS[1], 'cooldown' .. ARGV[1], value)
redis.call('HDEL', KEYS[1], 'probe' .. ARGV[1], 'opened' .. ARGV[1])
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
redis.call('PUBLISH', ARGV[5], 'state ' .. ARGV[6])
return 1
