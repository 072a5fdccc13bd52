-- Prolongs the places of many sessions on one subscription.
-- KEYS 1: the places (zset: session -> end, epoch ms)
-- ARGV 1: most places (0: no limit), then session, hold in ms, ...
-- Answers {places, score of each, 0 where the place is lost}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local most = tonumber(ARGV[1])
local count = redis.call('ZCARD', KEYS[1])
local answer = {0}
for i = 2, #ARGV, 2 do
  local held = redis.call('ZSCORE', KEYS[1], ARGV[i])
  local score = now + ARGV[i + 1]
  if held then
    score = math.max(score, held + 1)
  elseif most > 0 and count >= most then
    score = 0
  else
    count = count + 1
  end
  if score > 0 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', score), ARGV[i])
  end
  answer[#answer + 1] = score
end
answer[1] = count
if count > 0 then
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last[2] + 1))
end
return answer
