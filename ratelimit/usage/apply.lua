-- Adds a batch of one writer's events to everything that is counted for one
-- subscription, all of them or none, and each exactly once.
--
-- KEYS  1 writers, 2 now. All other keys share their slot and are named below.
-- ARGV  1 key prefix of the subscription, 2 writer, 3 epoch, 4 first sequence
--       number f, 5 number of events n, then what they add to each hash, as
--       merge.go has summed it up. First come those of the blocks, in the order
--       of time: each is of events that lie in one block whatever blocks there
--       are, and has no key. A sum is: key, expiry in ms ('' is KEEP after its
--       last event), first and last event in ms ('' where none are kept), price
--       version or '', number of counts w, number of models m, the first w counts
--       in the order of FIELDS, and m times a model and all its counts. Models
--       stand in the order of their first events.
--
-- Answers (numbers after the word):
--   OK last applied late      counted; late ones lie before the current block
--   DUP last                  all were counted before; nothing changed
--   GAP last                  f is not the next number; nothing changed: go to last+1,
--                             back over what is missing or on past what is known
--   FENCED last epoch fork    a newer epoch of the same writer exists; nothing changed
--
-- The time is only ever that of the events, never the server's: a replay gives
-- the same state.

local L, HOUR, DAY = 18000000, 3600000, 86400000
local KEEP = 7 * DAY
local MODELS = 64
-- The most digits of two numbers whose sum is exact as a double and as its text.
local DIGITS = 15
local FIELDS = { 'requests', 'input', 'output', 'cache_read', 'cache_write_5m', 'cache_write_1h',
  'cost_nano_usd', 'estimated', 'unpriced', 'unknown' }

local prefix, writer = ARGV[1], ARGV[2]
local epoch, first, n = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local floor = math.floor
local call = redis.call

local function int(v) return string.format('%.0f', v) end

-- Who is asking, and what has been counted of it.
local done, stored, seen, fork = 0, 0, 0, 0
local entry = call('HGET', KEYS[1], writer)
if entry then
  local a, b, c, d = string.match(entry, '^(%d+):(%d+):(%d+):(%d+)$')
  if not a then return redis.error_reply('ERR entry of writer ' .. writer .. ' is malformed') end
  done, stored, seen, fork = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
end
if epoch < stored then return { 'FENCED', done, stored, fork } end
if first <= done + 1 and first + n <= done + 1 then return { 'DUP', done } end
if first ~= done + 1 then return { 'GAP', done } end

-- The name of a block: year, month, day and hour of its start in UTC. Days since
-- 1970 to the civil calendar, counted in eras of 400 years that begin in March.
local function block_id(ms)
  local days = floor(ms / DAY)
  local z = days + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  local d = doy - floor((153 * mp + 2) / 5) + 1
  local m = mp < 10 and mp + 3 or mp - 9
  local y = yoe + era * 400 + (m <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d', y, m, d, floor((ms - days * DAY) / HOUR))
end

-- The fields of a model in the order of FIELDS.
local fields_by_model = {}

local function fields_of(model)
  local fields = fields_by_model[model]
  if not fields then
    fields = {}
    for i, field in ipairs(FIELDS) do fields[i] = model .. ':' .. field end
    fields_by_model[model] = fields
  end
  return fields
end

-- How many models the hash has.
local function models_of(key)
  local count = 0
  for _, field in ipairs(call('HKEYS', key)) do
    if string.sub(field, -9) == ':requests' then count = count + 1 end
  end
  return count
end

-- Which fields must be counted under another name, and which: a model that is new
-- in a hash of MODELS models is counted as 'other'.
local function others(key, models, heads, fields, was)
  local names, have = {}
  for m = 1, models do
    if not was[heads[m]] then
      -- It has no more models than fields: mostly that is enough to know.
      if not have then
        have = call('HLEN', key)
        if have + models > MODELS then have = models_of(key) end
      end
      if have >= MODELS then
        for i = heads[m], heads[m + 1] - 1 do names[i] = 'other' .. string.match(fields[i], ':[^:]*$') end
      else
        have = have + 1
      end
    end
  end
  return names
end

-- Adds the sum at ARGV[at] to a hash: one read, one write. Numbers too large for
-- that are added by HINCRBY, which is exact for them, too. Returns the hash's
-- totals, its last event, and where the next sum stands.
local function add(at, key, expiry, start)
  local from, to, prices = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4]
  local width, models = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local fields, counts, n = {}, {}, width
  for i = 1, width do fields[i], counts[i] = FIELDS[i], ARGV[at + 6 + i] end
  at = at + 7 + width
  local heads = {} -- where each model begins in fields: at its requests, which are never 0
  for m = 1, models do
    local names = fields_of(ARGV[at])
    heads[m] = n + 1
    for i = 1, #FIELDS do
      local count = ARGV[at + i]
      if count ~= '0' then
        n = n + 1
        fields[n], counts[n] = names[i], count
      end
    end
    at = at + 1 + #FIELDS
  end
  heads[models + 1] = n + 1
  if from then fields[n + 1], fields[n + 2] = 'first', 'last' end

  local was = call('HMGET', key, unpack(fields))
  local is_new = not was[1]

  local raise = is_new and {} or others(key, models, heads, fields, was)
  local set, values = {}, {}
  local function put(field, value)
    set[#set + 1] = field
    set[#set + 1] = value
  end
  for i = 1, n do
    local old, more = was[i], counts[i]
    if not raise[i] and (not old or more ~= '0') then
      if not old then
        values[i] = more
      elseif #old <= DIGITS and #more <= DIGITS then
        values[i] = int(tonumber(old) + tonumber(more))
      else
        raise[i] = fields[i]
      end
      if values[i] then put(fields[i], values[i]) end
    end
  end
  local moved
  if from then
    local was_first, was_last = tonumber(was[n + 1]), tonumber(was[n + 2])
    if not was_first or from < was_first then put('first', int(from)) end
    moved = not was_last or to > was_last
    if moved then put('last', int(to)) else to = was_last end
  end
  if start and is_new then
    put('start', int(start))
    put('end', int(start + L))
  end
  if prices ~= '' then put('prices', prices) end
  if #set > 0 then call('HSET', key, unpack(set)) end
  for i, field in pairs(raise) do
    call('HINCRBY', key, field, counts[i])
    if i <= width then values[i] = call('HGET', key, field) end
  end
  if expiry == '' then
    if moved then call('PEXPIREAT', key, int(to + KEEP)) end
  elseif is_new then
    call('PEXPIREAT', key, expiry)
  end
  for i = 1, width do values[i] = values[i] or was[i] end
  return values, to, at
end

-- The current block: the newest start, and the time of its last event.
local start, last
local newest = call('ZREVRANGE', prefix .. 'blocks', 0, 0)[1]
if newest then
  start = tonumber(newest)
  last = tonumber(call('HGET', prefix .. 'block:' .. block_id(start), 'last') or newest)
end
local opened = false

local function open_block(ts)
  local s = ts - ts % HOUR
  call('ZADD', prefix .. 'blocks', int(s), int(s))
  opened = true
  return s
end

local at, late = 6, 0
local totals -- of the current block, once one of its events came
while ARGV[at] == '' do
  local from, to = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if to > seen then seen = to end
  local into
  if not start or (from >= start and (from - start > L or from - last > L)) then
    start = open_block(from)
    last = start
    into = start
  elseif from >= start then
    into = start
  else
    late = late + tonumber(ARGV[at + 7])
    into = call('ZREVRANGEBYSCORE', prefix .. 'blocks', int(from), '-inf', 'LIMIT', 0, 1)[1]
    into = into and tonumber(into)
    if not into or from - into > L then into = open_block(from) end
  end
  local values, reached
  values, reached, at = add(at, prefix .. 'block:' .. block_id(into), int(into + L + 35 * DAY), into)
  if into == start then totals, last = values, math.max(last, reached) end
end
while ARGV[at] do
  local _
  _, _, at = add(at, prefix .. ARGV[at], ARGV[at + 1])
end

-- The active block in one hash. A late event never changes it.
if totals then
  local now = { 'block', block_id(start), 'start', int(start), 'end', int(start + L), 'last', int(last) }
  for i, field in ipairs(FIELDS) do
    now[#now + 1] = field
    now[#now + 1] = totals[i]
  end
  call('HSET', KEYS[2], unpack(now))
  call('PEXPIREAT', KEYS[2], int(start + L))
end

-- A new writer, or a new block, is the occasion to forget old ones.
if done == 0 then
  local all = call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local time = tonumber(string.match(all[i + 1], '^%d+:%d+:(%d+):'))
    if all[i] ~= writer and time and time < seen - 35 * DAY then call('HDEL', KEYS[1], all[i]) end
  end
end
if opened then call('ZREMRANGEBYSCORE', prefix .. 'blocks', '-inf', '(' .. int(start - 35 * DAY)) end

done = first + n - 1
call('HSET', KEYS[1], writer, table.concat({ int(done), int(epoch), int(seen), int(fork) }, ':'))
return { 'OK', done, n, late }
