-- Reads a subscription's state together with the time that it is measured by.
-- KEYS 1: the state (hash), 2: the organisation (hash)
-- Answers {now in epoch ms, organisation or '', field, value, ...}.
local t = redis.call('TIME')
local answer = redis.call('HGETALL', KEYS[1])
table.insert(answer, 1, redis.call('HGET', KEYS[2], 'organisation') or '')
table.insert(answer, 1, string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
return answer
