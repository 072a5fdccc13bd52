-- Asks whether what a cooldown closed may be used again: it has ended for the one
-- who asks.
-- KEYS 1: the state (hash) that its probes are agreed on in
-- ARGV 1: process, 2: hold in ms, 3: pace of the ramp in ms, 4: its length in ms,
--      then what was closed, as in cool.lua
-- Answers {'closed', ms} | {'probing', ms} | {'granted', ms} | {'open', ms since,
-- ms until its turn, seat}. A probe is granted to one process at a time, until it
-- tells how it went or the hold is over; that somebody else has asked meanwhile is
-- noted, for only then there is somebody to tell. After one that succeeded, each
-- process has a seat of its own on the ramp, one pace after the one before.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local closed, probing, open = 0, 0, true
for i = 5, #ARGV do
  local ends = string.match(redis.call('HGET', KEYS[1], 'cooldown' .. ARGV[i]) or '', '^%d+') or 0
  closed = math.max(closed, tonumber(ends) - now)
  local holder, over = string.match(redis.call('HGET', KEYS[1], 'probe' .. ARGV[i]) or '', '^(%S+) (%d+)$')
  if holder and holder ~= ARGV[1] and tonumber(over) > now then
    probing = math.max(probing, over - now)
    redis.call('HSET', KEYS[1], 'probe?' .. ARGV[i], 'asked ' .. over)
  end
  if redis.call('HEXISTS', KEYS[1], 'opened' .. ARGV[i]) == 0 then open = false end
end
if closed > 0 then return {'closed', closed} end
if probing > 0 then return {'probing', probing} end
if open then
  local since, delay, seat = math.huge, 0, 1
  for i = 5, #ARGV do
    local field = 'opened' .. ARGV[i]
    local began, turn, taken, last = string.match(redis.call('HGET', KEYS[1], field), '^(%d+) (%d+) (%d+) (%S+)$')
    began, turn, taken = tonumber(began), tonumber(turn), tonumber(taken)
    if now < began + ARGV[4] and last ~= ARGV[1] then
      turn, taken = math.min(math.max(now, turn + ARGV[3]), began + ARGV[4]), taken + 1
      redis.call('HSET', KEYS[1], field, string.format('%.0f %.0f %d %s', began, turn, taken, ARGV[1]))
    end
    since, delay, seat = math.min(since, now - began), math.max(delay, turn - now), math.max(seat, taken)
  end
  return {'open', math.max(since, 0), delay, seat}
end
for i = 5, #ARGV do
  redis.call('HSET', KEYS[1], 'probe' .. ARGV[i], string.format('%s %.0f', ARGV[1], now + ARGV[2]))
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {'granted', tonumber(ARGV[2])}
