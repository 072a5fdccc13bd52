-- Adds a batch of one writer's events to everything that is counted for one
-- subscription, all of them or none, and each exactly once. lives.lua stands before
-- it.
--
-- KEYS  1 writers, 2 now, 3 one that never exists, so that a cluster does not run this
--       while the slot moves. All other keys share their slot and are named below.
-- ARGV  1 key prefix of the subscription, 2 writer, 3 its lives, 4 first sequence
--       number f, 5 number of events n, 6 time of the latest of them in ms, then
--       what they add to each hash, as merge.go has summed it up. First come those
--       of the blocks, in the order of time: each is of events that lie in one
--       block whatever blocks there are, and has no key. A sum is: key, expiry in
--       ms ('' is KEEP after its last event, or never where none is kept), first
--       and last event in ms ('' where none are kept), price version or '', number
--       of events, number of models m, the counts, and m times a model and its
--       counts. Counts are a shape, and a number for each bit in it. Bit i is
--       FIELDS[i+1]; bit 0, the requests, is in every shape. Models stand in the
--       order of their first events.
--
-- Answers (numbers after the word):
--   OK last late              counted; late ones lie before the current block
--   DUP last                  all were counted before; nothing changed
--   GAP last                  f is not the next number; nothing changed: go to last+1,
--                             back over what is missing or on past what is known
--   FENCED last fork          another folder has counted other events under the writer:
--                             the same ones up to the fork, -1 when that cannot be
--                             told; nothing changed
--
-- A writer's entry is last:time:lives, the lives of the folder that counted the last
-- number. All that is counted stands in its journal, and stood in those of all who
-- counted before: whoever has other events than those that are counted is fenced off.
--
-- The time is only ever that of the events, never the server's: a replay gives
-- the same state.

local L, HOUR, DAY = 18000000, 3600000, 86400000
local KEEP = 7 * DAY
local MODELS = 64
-- The most digits of two numbers whose sum is exact as a double and as its text.
local DIGITS = 15
local FIELDS = { 'requests', 'input', 'output', 'cache_read', 'cache_write_5m', 'cache_write_1h',
  'cost_nano_usd', 'estimated', 'unpriced', 'unknown',
  'reasoning', 'web_search_requests', 'web_fetch_requests', 'seconds', 'images', 'search_units' }

local prefix, writer = ARGV[1], ARGV[2]
local lives, first, n = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local floor = math.floor
local call = redis.call

local function int(v) return string.format('%.0f', v) end

-- Who is asking, and what has been counted of it.
local done, seen = 0, 0
local entry = call('HGET', KEYS[1], writer)
if entry then
  local a, b, counted_by = string.match(entry, '^(%d+):(%d+):([^:]*)$')
  if not a then return redis.error_reply('ERR entry of writer ' .. writer .. ' is malformed') end
  done, seen = tonumber(a), tonumber(b)
  if lives ~= counted_by then
    local fork = shared(lives, counted_by)
    if done > math.max(fork, 0) then return { 'FENCED', done, fork } end
  end
end
if first <= done + 1 and first + n <= done + 1 then return { 'DUP', done } end
if first ~= done + 1 then return { 'GAP', done } end
seen = math.max(seen, tonumber(ARGV[6]))

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

-- Where the counts of a shape stand in FIELDS.
local places_by_shape = {}

local function places_of(shape)
  local places = places_by_shape[shape]
  if not places then
    places = {}
    local bits = tonumber(shape)
    for i = 1, #FIELDS do
      if bits % 2 == 1 then places[#places + 1] = i end
      bits = floor(bits / 2)
    end
    places_by_shape[shape] = places
  end
  return places
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
-- that are added by HINCRBY, which is exact for them, too. Returns the hash's last
-- event, and where the next sum stands.
local function add(at, key, expiry, start)
  local from, to, prices = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4]
  local models = tonumber(ARGV[at + 6])
  at = at + 7
  local fields, counts, n = {}, {}, 0
  local heads = {} -- where each model begins in fields: at its requests
  local names = FIELDS
  for m = 0, models do
    if m > 0 then
      names = fields_of(ARGV[at])
      heads[m] = n + 1
      at = at + 1
    end
    local places = places_of(ARGV[at])
    for i = 1, #places do
      fields[n + i], counts[n + i] = names[places[i]], ARGV[at + i]
    end
    n = n + #places
    at = at + 1 + #places
  end
  heads[models + 1] = n + 1
  if from then fields[n + 1], fields[n + 2] = 'first', 'last' end

  local was = call('HMGET', key, unpack(fields))
  local is_new = not was[1]

  local raise = is_new and {} or others(key, models, heads, fields, was)
  local set = {}
  local function put(field, value)
    set[#set + 1] = field
    set[#set + 1] = value
  end
  for i = 1, n do
    local old, more = was[i], counts[i]
    if not raise[i] and (not old or more ~= '0') then
      if not old then
        put(fields[i], more)
      elseif #old <= DIGITS and #more <= DIGITS then
        put(fields[i], int(tonumber(old) + tonumber(more)))
      else
        raise[i] = fields[i]
      end
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
  for i, field in pairs(raise) do call('HINCRBY', key, field, counts[i]) end
  if expiry == '' then
    if moved then call('PEXPIREAT', key, int(to + KEEP)) end
  elseif is_new then
    call('PEXPIREAT', key, expiry)
  end
  return to, at
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

local at, late = 7, 0
local touched = false -- whether one of the events came into the current block
while ARGV[at] == '' do
  local from = tonumber(ARGV[at + 2])
  local into
  if not start or (from >= start and (from - start > L or from - last > L)) then
    start = open_block(from)
    last = start
    into = start
  elseif from >= start then
    into = start
  else
    late = late + tonumber(ARGV[at + 5])
    into = call('ZREVRANGEBYSCORE', prefix .. 'blocks', int(from), '-inf', 'LIMIT', 0, 1)[1]
    into = into and tonumber(into)
    if not into or from - into > L then into = open_block(from) end
  end
  local reached
  reached, at = add(at, prefix .. 'block:' .. block_id(into), int(into + L + 35 * DAY), into)
  if into == start then touched, last = true, math.max(last, reached) end
end
while ARGV[at] do
  local _
  _, at = add(at, prefix .. ARGV[at], ARGV[at + 1])
end

-- The active block in one hash. A late event never changes it.
if touched then
  local id = block_id(start)
  local now = { 'block', id, 'start', int(start), 'end', int(start + L), 'last', int(last) }
  local sums = call('HMGET', prefix .. 'block:' .. id, unpack(FIELDS))
  for i, field in ipairs(FIELDS) do
    if sums[i] then
      now[#now + 1] = field
      now[#now + 1] = sums[i]
    end
  end
  if opened then call('DEL', KEYS[2]) end -- it may have fields that this block lacks
  call('HSET', KEYS[2], unpack(now))
  call('PEXPIREAT', KEYS[2], int(start + L))
end

-- A new writer, or a new block, is the occasion to forget old ones.
if done == 0 then
  local all = call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local time = tonumber(string.match(all[i + 1], '^%d+:(%d+):'))
    if all[i] ~= writer and time and time < seen - 35 * DAY then call('HDEL', KEYS[1], all[i]) end
  end
end
if opened then call('ZREMRANGEBYSCORE', prefix .. 'blocks', '-inf', '(' .. int(start - 35 * DAY)) end

done = first + n - 1
call('HSET', KEYS[1], writer, table.concat({ int(done), int(seen), lives }, ':'))
return { 'OK', done, late }
