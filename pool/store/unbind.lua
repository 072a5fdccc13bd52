-- Ends a session's binding, for an operator.
-- KEYS 1: the binding (hash)
-- ARGV 1: how long it is remembered, in ms, 2: channel, 3: session
-- Answers the subscription that it was bound to, '' where it was to none. That it
-- was released is remembered for those who believe it bound and would write that
-- again; a request may bind it anew at once.
local bound = redis.call('HGET', KEYS[1], 'subscription')
if not bound then return '' end
local t = redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'released', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'session  ' .. ARGV[3])
return bound
