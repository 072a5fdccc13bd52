-- Leases one process its share of a subscription's concurrency.
-- KEYS 1: the shares (hash: process -> "granted want end", end in epoch ms)
-- ARGV 1: process, 2: limit, 3: requests under way there, 4: wanted (0: give up), 5: lease in ms
-- Answers {granted, target}. The sum of what is granted never exceeds the limit,
-- because nobody gets more than the others have left.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local limit, busy, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local granted, wanted, others = 0, 0, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local g, w, ends = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
  if not ends or tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    granted, wanted, others = granted + g, wanted + w, others + 1
  end
end
if want <= 0 and busy <= 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return {0, 0}
end
want = math.max(want, busy)
local target = want
if wanted + want > limit then
  -- Not enough for all: an equal part for each, and what the others leave.
  local fair = math.max(1, math.floor(limit / (others + 1)))
  target = math.min(want, math.max(fair, limit - wanted))
end
local mine = math.min(math.max(target, busy), math.max(0, limit - granted))
target = math.min(target, mine)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d %.0f', mine, want, now + ARGV[5]))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {mine, target}
