-- Reads some of the places on a subscription.
-- KEYS 1: the places (zset: session -> end, epoch ms)
-- ARGV 1: where to go on, '0' at first, 2: about how many
-- Answers {where to go on, '0' at the end, session, ms left, score, ...} of those that
-- have not ended.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local answer = {found[1]}
for i = 1, #found[2], 2 do
  local score = tonumber(found[2][i + 1])
  if score > now then
    answer[#answer + 1] = found[2][i]
    answer[#answer + 1] = string.format('%.0f', score - now)
    answer[#answer + 1] = string.format('%.0f', score)
  end
end
return answer
