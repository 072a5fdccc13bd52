-- Makes one process of the fleet the one that moves sessions on its own.
-- KEYS 1: its lease (hash: process, fence, until, began, moves)
-- ARGV 1: process, 2: hold in ms, 3: moves that it wants, 4: most moves of the fleet in
--      a window, 5: the window in ms, 6: 1 to take the lease from another
-- Answers {fence (0: another has the lease, or there is nothing to move), moves that it
-- may make, ms until there are more, or until the other's lease ends}.
-- A lease is not prolonged: after it the next one to ask has it. Who gets no moves gets
-- none.
-- Fences rise, also when the key was lost: they are never below the clock.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local was = redis.call('HMGET', KEYS[1], 'process', 'fence', 'until', 'began', 'moves')
local ends = tonumber(was[3] or 0)
if was[1] and was[1] ~= ARGV[1] and ends > now and ARGV[6] ~= '1' then
  return {0, 0, ends - now}
end
local began, moves = tonumber(was[4] or 0), tonumber(was[5] or 0)
local window = tonumber(ARGV[5])
if now - began >= window or began > now then
  began, moves = now, 0
end
local granted = math.max(math.min(tonumber(ARGV[3]), tonumber(ARGV[4]) - moves), 0)
if granted == 0 then
  return {0, 0, began + window - now}
end
began = now -- the window ends so long after the last moves: no other one has more, wherever it begins
local fence = math.max(tonumber(was[2] or 0) + 1, now)
local lasts = now + tonumber(ARGV[2])
if was[1] == ARGV[1] and ends > now then
  lasts = ends
end
redis.call('HSET', KEYS[1], 'process', ARGV[1], 'fence', string.format('%.0f', fence),
  'until', string.format('%.0f', lasts), 'began', string.format('%.0f', began),
  'moves', string.format('%.0f', moves + granted))
redis.call('PEXPIRE', KEYS[1], math.max(window, tonumber(ARGV[2])) * 60)
return {fence, granted, began + window - now}
