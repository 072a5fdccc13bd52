-- Claims items of provider's batches for the events that tell of them: the first
-- event to come owns an item for good.
--
-- KEYS  hashes of batches: item to the event that owns it, and `last`
-- ARGV  for each of them: time of the latest event in ms, number of items n, and n
--       times an item and an event
--
-- Answers with a string that has for each item, in their order, a 1 if the event
-- owns it and a 0 if another one does.
--
-- The same call may come any number of times: an owner stays one. The time is that
-- of the events. A hash is kept 35 days after the last event that told of an item of
-- it: providers keep results for up to 30.
local KEEP = 35 * 86400000
local at, owns = 1, {}
for _, key in ipairs(KEYS) do
  local latest, n = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  at = at + 2
  for i = at, at + 2 * n - 2, 2 do
    if redis.call('HSETNX', key, ARGV[i], ARGV[i + 1]) == 1 then
      owns[#owns + 1] = '1'
    else
      owns[#owns + 1] = redis.call('HGET', key, ARGV[i]) == ARGV[i + 1] and '1' or '0'
    end
  end
  at = at + 2 * n
  if latest > tonumber(redis.call('HGET', key, 'last') or -1) then
    redis.call('HSET', key, 'last', string.format('%.0f', latest))
    redis.call('PEXPIREAT', key, string.format('%.0f', latest + KEEP))
  end
end
return table.concat(owns)
