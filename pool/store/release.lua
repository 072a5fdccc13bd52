-- Gives a session's place back, if it is still in the state that the score names.
-- KEYS 1: the places (zset: session -> end, epoch ms)
-- ARGV 1: session, 2: score
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if held and tonumber(held) == tonumber(ARGV[2]) then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
