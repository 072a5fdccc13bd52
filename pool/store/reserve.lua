-- Takes or prolongs a session's place on a subscription.
-- KEYS 1: the places (zset: session -> end, epoch ms), 2: the highest fence that
--      moved sessions here (string); only for a move that has one
-- ARGV 1: session, 2: most places (0: no limit), 3: hold in ms, 4: fence,
--      5: how long it is remembered, in ms
-- Answers {-1 fenced off | 0 refused | 1 held before | 2 new, score, places, ms until
-- the first one ends}.
-- Every change raises the score, so that a score names one state of the place.
if KEYS[2] then
  if tonumber(ARGV[4]) < tonumber(redis.call('GET', KEYS[2]) or 0) then
    return {-1, 0, 0, 0}
  end
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
local score = now + ARGV[3]
if held then
  score = math.max(score, held + 1)
else
  local count = redis.call('ZCARD', KEYS[1])
  local most = tonumber(ARGV[2])
  if most > 0 and count >= most then
    local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    return {0, 0, count, first[2] - now}
  end
end
redis.call('ZADD', KEYS[1], string.format('%.0f', score), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last[2] + 1))
return {held and 1 or 2, score, redis.call('ZCARD', KEYS[1]), 0}
