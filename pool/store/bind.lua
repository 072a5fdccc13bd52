-- Compare-and-set of the subscription that a session sticks to.
-- KEYS 1: the binding (hash)
-- ARGV 1: who it is expected to be bound to ('' nobody), 2: wanted subscription,
--      3: parent session or '', 4: affinity in ms, 5: channel, 6: session,
--      7: 1 it is only kept: what was released stays so
-- Answers the subscription that it is bound to afterwards, '-' for a released one.
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local bound = redis.call('HGET', KEYS[1], 'subscription')
if bound and bound ~= ARGV[1] and bound ~= ARGV[2] then
  return bound
end
if not bound and redis.call('HEXISTS', KEYS[1], 'released') == 1 then
  if ARGV[7] == '1' then return '-' end
  redis.call('HDEL', KEYS[1], 'released')
end
if bound ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'subscription', ARGV[2], 'since', now)
  if bound then
    redis.call('PUBLISH', ARGV[5], 'session ' .. ARGV[2] .. ' ' .. ARGV[6])
  end
end
redis.call('HSET', KEYS[1], 'last', now)
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'parent', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return ARGV[2]
