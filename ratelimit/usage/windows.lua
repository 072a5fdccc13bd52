-- Keeps the newest view of a provider's own windows.
--
-- KEYS  1 windows
-- ARGV  1 claim or '', then for each window: name, utilisation in millionths,
--       reset in ms or 0, status, seen in ms
--
-- A view is left out when it is older than the stored one, or when its reset lies
-- more than a minute before the stored one while that was still ahead of it: then
-- it is a slow answer of the former window. The time is that of the answers.
-- Answers with the number of windows taken over.
local MINUTE = 60000
local taken = 0
for i = 2, #ARGV, 5 do
  local name, reset, seen = ARGV[i], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 4])
  local was = redis.call('HMGET', KEYS[1], name .. ':seen', name .. ':reset')
  local was_seen, was_reset = tonumber(was[1]) or 0, tonumber(was[2]) or 0
  local stale = seen < was_seen or (reset > 0 and reset <= seen)
    or (reset > 0 and reset < was_reset - MINUTE and seen < was_reset)
  if not stale then
    redis.call('HSET', KEYS[1], name .. ':util', ARGV[i + 1], name .. ':reset', ARGV[i + 2],
      name .. ':status', ARGV[i + 3], name .. ':seen', ARGV[i + 4])
    taken = taken + 1
  end
end
if taken > 0 and ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'claim', ARGV[1]) end
return taken
