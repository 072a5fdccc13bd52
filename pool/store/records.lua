-- Reads the records that operators keep, of one kind.
-- KEYS 1: the records (hash)
-- ARGV 1: the state that the asker knows
-- Answers the state that they are in, which changes with every change, and, where it
-- is another, id and record by turns.
local state = redis.call('HGET', KEYS[1], ':state') or '0'
if state == ARGV[1] then return {state} end
local out = {state}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= ':state' and all[i] ~= ':last' then
    out[#out + 1] = all[i]
    out[#out + 1] = all[i + 1]
  end
end
return out
