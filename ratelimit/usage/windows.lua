-- Keeps the newest view of a provider's own windows, and learns from view to view
-- what a window holds.
--
-- KEYS  1 windows, 2 total
-- ARGV  1 claim or '', then for each window: name, utilisation in millionths,
--       reset in ms or 0, status, seen in ms
--
-- A view is left out when it is older than the stored one, or when its reset lies
-- more than a minute before the stored one while that was still ahead of it: then
-- it is a slow answer of the former window. The time is that of the answers.
-- Answers with the number of windows taken over.
--
-- Of each window these fields are kept; money is in nano-dollars, of all sidecars:
--   util, reset, status, seen  the newest view
--   total_nano                 what the subscription had cost ever, at that view
--   spent_nano                 what it cost since the window's first view, till then
--   base_util, base_nano       util and total_nano where the next pair begins
--   pairs                      the newest PAIRS pairs, oldest first: each is what a
--                              whole window holds by one step of utilisation
--   capacity_nano              their median; absent until there is a pair
--   foreign                    the part of util, in millionths, that is others': what
--                              lies so far above our own that no rounding explains it
local MINUTE = 60000
local STEP = 20000 -- the smallest rise that is a pair, and the smallest fall that is one
local WELL_ABOVE = 50000
local PAIRS = 20
local MAX = 9e15 -- nine million dollars: as far as a double counts nano-dollars

local function int(v) return string.format('%.0f', v) end

local function median(list)
  local sorted = {}
  for i, v in ipairs(list) do sorted[i] = tonumber(v) end
  table.sort(sorted)
  local n = #sorted
  return math.floor((sorted[math.ceil(n / 2)] + sorted[math.floor(n / 2) + 1]) / 2)
end

local total = redis.call('HGET', KEYS[2], 'cost_nano_usd') or '0'
local taken = 0
for i = 2, #ARGV, 5 do
  local name, util, reset, seen = ARGV[i] .. ':', tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 4])
  local was = redis.call('HMGET', KEYS[1], name .. 'seen', name .. 'reset', name .. 'util', name .. 'total_nano',
    name .. 'spent_nano', name .. 'base_util', name .. 'base_nano', name .. 'pairs')
  local was_seen, was_reset, was_util = tonumber(was[1]) or 0, tonumber(was[2]) or 0, tonumber(was[3]) or 0
  local stale = seen < was_seen or (reset > 0 and reset <= seen)
    or (reset > 0 and reset < was_reset - MINUTE and seen < was_reset)
  if not stale then
    -- An answer that tells no reset does not take back the one that is ahead.
    if reset == 0 and seen < was_reset then reset = was_reset end
    -- Without any, a window begins anew where utilisation falls.
    local anew = not was[4] or (was_reset > 0 and reset > was_reset + MINUTE)
      or (reset == 0 and (was_reset > 0 or util <= was_util - STEP))
    -- A total that fell was lost by a fail-over: nothing is known of the time between.
    local cost = math.max(0, tonumber(total) - (tonumber(was[4]) or 0))
    local spent = anew and 0 or math.min(tonumber(was[5]) + cost, MAX)

    local base_util, base, kept = tonumber(was[6]), was[7], {}
    for pair in string.gmatch(was[8] or '', '%d+') do kept[#kept + 1] = pair end
    if anew or util <= base_util - STEP then
      base_util, base = util, total
    elseif util >= base_util + STEP then
      -- A step that cost us nothing is others', and says nothing of the capacity.
      local holds = math.floor((tonumber(total) - tonumber(base)) * 1000000 / (util - base_util))
      if holds > 0 then kept[#kept + 1] = int(math.min(holds, MAX)) end
      while #kept > PAIRS do table.remove(kept, 1) end
      base_util, base = util, total
    end

    redis.call('HSET', KEYS[1], name .. 'util', ARGV[i + 1], name .. 'reset', int(reset),
      name .. 'status', ARGV[i + 3], name .. 'seen', ARGV[i + 4], name .. 'total_nano', total,
      name .. 'spent_nano', int(spent), name .. 'base_util', int(base_util), name .. 'base_nano', base)
    if #kept > 0 then
      local capacity = median(kept)
      local foreign = util - math.floor(spent * 1000000 / capacity)
      redis.call('HSET', KEYS[1], name .. 'pairs', table.concat(kept, ' '), name .. 'capacity_nano', int(capacity),
        name .. 'foreign', foreign > WELL_ABOVE and int(foreign) or '0')
    end
    taken = taken + 1
  end
end
if taken > 0 and ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'claim', ARGV[1]) end
return taken
