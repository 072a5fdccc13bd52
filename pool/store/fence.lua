-- Keeps those from moving sessions to a subscription whose fence is lower.
-- KEYS 1: the highest fence (string)
-- ARGV 1: fence, 2: how long it is remembered, in ms
-- Answers the highest one.
local highest = tonumber(redis.call('GET', KEYS[1]) or 0)
if tonumber(ARGV[1]) < highest then return highest end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return tonumber(ARGV[1])
