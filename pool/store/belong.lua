-- Notes which organisation a subscription is of, as its provider's answers say.
-- KEYS 1: the organisation (hash), 2: the state (hash)
-- ARGV 1: organisation, 2: how long it is kept, in ms, 3: 1 when what closed all that
--      share its limits was the former organisation's, 4: channel, 5: subscription
-- Answers 1 when it is another than before, else 0. What closed the subscription
-- alone stays.
local t = redis.call('TIME')
local former = redis.call('HGET', KEYS[1], 'organisation')
if former ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'organisation', ARGV[1], 'since', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if former == ARGV[1] then return 0 end
if former and ARGV[3] == '1' then
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    local closure = string.match(name, '^cooldown(.+)$') or string.match(name, '^probe(.+)$') or string.match(name, '^opened(.+)$')
    if closure and closure ~= '_subscription' and closure ~= '_until' then redis.call('HDEL', KEYS[2], name) end
  end
  local own = redis.call('HGET', KEYS[2], 'cooldown_subscription') or ''
  local ends, state, reason = string.match(own, '^(%d+) (%S*) (%S*)$')
  if ends then
    redis.call('HSET', KEYS[2], 'cooldown_until', ends, 'state', state, 'reason', reason)
  else
    redis.call('HDEL', KEYS[2], 'cooldown_until', 'state', 'reason')
  end
end
redis.call('PUBLISH', ARGV[4], 'state ' .. ARGV[5])
return 1
