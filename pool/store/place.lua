-- Reads one session's place on a subscription.
-- KEYS 1: the places (zset: session -> end, epoch ms)
-- ARGV 1: session
-- Answers {ms left, score}; 0 where it holds none.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if score <= now then return {0, 0} end
return {score - now, score}
