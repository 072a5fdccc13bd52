-- Ends all cooldowns in a subscription's state, for an operator.
-- KEYS 1: the state (hash)
-- ARGV 1: how long that is remembered at least, in ms, 2: channel, 3: subscription
-- It is remembered for as long as the longest of them would have lasted: a process
-- that was away still hears of it.
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local left = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[1]))
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'enabled', now)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left))
redis.call('PUBLISH', ARGV[2], 'state ' .. ARGV[3])
return 1
