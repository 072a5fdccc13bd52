-- Reads one session's binding, with the time that it is measured by.
-- KEYS 1: the binding (hash)
-- Answers {now in epoch ms, subscription, since, last, parent}; '' for what is not there.
local t = redis.call('TIME')
local answer = {string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))}
for i, value in ipairs(redis.call('HMGET', KEYS[1], 'subscription', 'since', 'last', 'parent')) do
  answer[i + 1] = value or ''
end
return answer
