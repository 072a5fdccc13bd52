-- Draws one process its allowances of a subscription's limits per minute.
-- KEYS 1: the rates (hash: requests, input, output -> "level at", the bucket of each limit;
--         process -> "seq end since" and for each limit "spent held lack")
-- ARGV 1: process, 2: number of the draw, 3: lease in ms, then for each limit: the
--      limit (0: none), spent by the process since it began, its debt, what it keeps
--      of what it holds, needs to hold, and wants to hold
-- Answers {1 the need is held | 0, ms until it can be, other processes}, and for
-- each limit what the process holds and what the bucket has.
-- A level is in 60000ths: of them a bucket gets as many in a millisecond as its
-- limit is. Level and all that is held are one minute's worth at most.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local process, seq, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local names, unit, patience = {'requests', 'input', 'output'}, 60000, 2000

local buckets, mine, others = {}, nil, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local n = {}
  for x in string.gmatch(all[i + 1], '%S+') do n[#n + 1] = tonumber(x) end
  if #n == 2 then
    buckets[all[i]] = n
  elseif #n ~= 12 or n[2] <= now then
    redis.call('HDEL', KEYS[1], all[i]) -- what it held counts as spent
  elseif all[i] == process then
    mine = n
  else
    others[#others + 1] = n
  end
end
local repeated = mine and seq <= mine[1]

-- Who waits longest and before this process? Nobody waits who has not asked lately.
local since = mine and mine[3] > 0 and mine[3] or now
local oldest, waiting = nil, 0
for _, o in ipairs(others) do
  if o[3] > 0 and now < o[2] - lease + patience then
    waiting = waiting + 1
    if o[3] < since and (not oldest or o[3] < oldest[3]) then oldest = o end
  else
    o[3] = 0
  end
end

local granted, wait, kinds = true, 0, {}
for k = 1, 3 do
  local at = 4 + (k - 1) * 6
  local c = {limit = tonumber(ARGV[at]), spent = tonumber(ARGV[at + 1]), need = tonumber(ARGV[at + 4]), want = tonumber(ARGV[at + 5])}
  kinds[k] = c
  local elsewhere, lacks, before = 0, 0, 0
  for _, o in ipairs(others) do
    elsewhere = elsewhere + o[3 * k + 2]
    if o[3] > 0 then
      lacks = lacks + o[3 * k + 3]
      if o[3] < since then before = before + o[3 * k + 3] end
    end
  end
  c.held, c.lacks = 0, lacks
  if c.limit > 0 then
    local b = buckets[names[k]] or {c.limit * unit, now}
    c.level = b[1] + math.max(0, now - b[2]) * c.limit
    if repeated then
      c.held, c.need = mine[3 * k + 2], mine[3 * k + 2] + mine[3 * k + 3]
    else
      local debt, keep = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
      c.held = mine and mine[3 * k + 2] - (c.spent - mine[3 * k + 1]) or -debt
      local back = c.held - math.max(0, math.min(c.held, keep)) -- or what is owed
      c.level, c.held = c.level + back * unit, c.held - back
    end
    local most = math.max(0, c.limit - elsewhere - c.held) * unit
    c.level = math.min(c.level, most)
    c.lack = math.max(0, c.need - c.held)
    -- Half of what comes in is kept for the one that waits longest, so that one
    -- that needs much gets it some time.
    -- The last of the tokens is left for answers that come to more than was foretold.
    c.rest = k > 1 and c.limit * unit / 20 or 0
    local free = c.level - c.rest
    if oldest then
      free = free - math.min(oldest[3 * k + 3] * unit, (now - oldest[3]) * c.limit / 2)
    end
    -- What needs nearly all goes out when the bucket is as full as it gets while
    -- the others hold a little: the fleet then owes that.
    local brim = not oldest and c.level >= most and most >= c.limit * unit * 3 / 4
    if c.lack > 0 and c.lack * unit > free and not brim then
      granted = false
      wait = math.max(wait, math.ceil(((c.lack + before) * unit + c.rest - c.level) / c.limit), 1)
    end
  else
    c.lack = 0
  end
end

local needs, forget = 0, 1000
for k, c in ipairs(kinds) do
  if c.limit > 0 then
    if granted and not repeated then
      c.held, c.level, c.lack = c.held + c.lack, c.level - c.lack * unit, 0
      -- Of what nobody needs, an equal part for each that asks.
      local spare = math.floor((c.level - c.rest - c.lacks * unit) / unit / (waiting + 1))
      local more = math.max(0, math.min(c.want - c.held, spare))
      c.held, c.level = c.held + more, c.level - more * unit
    end
    needs = needs + c.lack
    forget = math.max(forget, math.ceil((c.limit * unit - c.level) / c.limit))
  end
end
if not repeated then
  local record, used = {}, 0
  for k, c in ipairs(kinds) do
    record[k] = string.format('%.0f %.0f %.0f', c.spent, c.held, c.lack)
    used = used + c.held + c.need + c.want
    if c.limit > 0 then
      redis.call('HSET', KEYS[1], names[k], string.format('%.0f %.0f', c.level, now))
    end
  end
  if used > 0 then
    redis.call('HSET', KEYS[1], process,
      string.format('%.0f %.0f %.0f %s', seq, now + lease, needs > 0 and since or 0, table.concat(record, ' ')))
  else
    redis.call('HDEL', KEYS[1], process)
  end
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(lease, forget)))
end

local answer = {granted and 1 or 0, wait, #others}
for k, c in ipairs(kinds) do
  answer[2 + 2 * k] = c.held
  answer[3 + 2 * k] = math.floor((c.level or 0) / unit)
end
return answer
