-- Adds a batch of one writer's events to everything that is counted for one
-- subscription, each event exactly once.
--
-- KEYS  1 writers, 2 now. All other keys share their slot and are named below.
-- ARGV  1 key prefix of the subscription, 2 writer, 3 epoch, 4 first sequence
--       number f, 5 count n, then n events in the order of their time, each of
--       WIDTH values: index (0 is f), time in ms, model, agent, session (of the
--       agent), price version, and the counts in the order of FIELDS.
--
-- Answers (numbers after the word):
--   OK last applied late      counted; late ones lie before the current block
--   DUP last                  all were counted before; nothing changed
--   GAP last                  f is not the next number; nothing changed: go back to last+1
--   FENCED last epoch fork    a newer epoch of the same writer exists; nothing changed
--
-- The time is only ever that of the events, never the server's: a replay gives
-- the same state. Sums are added by HINCRBY from strings, because a total read
-- into Lua would be a double.

local L, HOUR, DAY = 18000000, 3600000, 86400000
local MODELS = 64
local WIDTH, COUNTS = 15, 6
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
if first > done + 1 then return { 'GAP', done } end
local skip = done + 1 - first
if skip >= n then return { 'DUP', done } end

-- Year, month, day and hour of a time in UTC: days since 1970 to the civil
-- calendar, counted in eras of 400 years that begin in March.
local function civil(ms)
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
  return y, m, d, floor((ms - days * DAY) / HOUR)
end

local function block_id(start) return string.format('%04d-%02d-%02dT%02d', civil(start)) end

-- The sums of this batch, by key, in the order in which keys were met.
local sums, order = {}, {}

local function sum_of(key, expiry)
  local s = sums[key]
  if not s then
    s = { key = key, expiry = expiry, total = {}, models = {}, names = {} }
    sums[key] = s
    order[#order + 1] = s
  end
  return s
end

local function add(to, at)
  to[1] = (to[1] or 0) + 1
  for i = 2, #FIELDS do to[i] = (to[i] or 0) + tonumber(ARGV[at + COUNTS + i - 2]) end
end

-- The name under which a model is counted in s: its own, or 'other' when s has
-- MODELS models without it.
local function model_in(s, model)
  if s.models[model] then return model end
  s.len = s.len or call('HLEN', s.key)
  if s.len + #s.names >= MODELS and call('HEXISTS', s.key, model .. ':requests') == 0 then
    if not s.count then
      s.count = 0
      for _, field in ipairs(call('HKEYS', s.key)) do
        if string.sub(field, -9) == ':requests' then s.count = s.count + 1 end
      end
      for _, name in ipairs(s.names) do
        if call('HEXISTS', s.key, name .. ':requests') == 0 then s.count = s.count + 1 end
      end
    end
    if s.count >= MODELS then model = 'other' else s.count = s.count + 1 end
  end
  if not s.models[model] then
    s.models[model] = {}
    s.names[#s.names + 1] = model
  end
  return model
end

local function count(s, model, at)
  add(s.total, at)
  add(s.models[model_in(s, model)], at)
end

local function span(s, ts)
  if not s.first or ts < s.first then s.first = ts end
  if not s.last or ts > s.last then s.last = ts end
end

-- The current block: the newest start, and the time of its last event.
local start, last
local newest = call('ZREVRANGE', prefix .. 'blocks', 0, 0)[1]
if newest then
  start = tonumber(newest)
  last = tonumber(call('HGET', prefix .. 'block:' .. block_id(start), 'last') or newest)
end
local current -- the sums of the current block, once one of its events came
local late = 0

local function open_block(ts)
  local s = ts - ts % HOUR
  call('ZADD', prefix .. 'blocks', int(s), int(s))
  return s
end

for e = 0, n - 1 do
  local at = 6 + e * WIDTH
  if tonumber(ARGV[at]) >= skip then
    local ts, model, agent, session, prices =
      tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
    if ts > seen then seen = ts end

    local into
    if not start or (ts >= start and (ts - start > L or ts - last > L)) then
      start, last = open_block(ts), ts
      into = start
    elseif ts >= start then
      if ts > last then last = ts end
      into = start
    else
      late = late + 1
      into = call('ZREVRANGEBYSCORE', prefix .. 'blocks', int(ts), '-inf', 'LIMIT', 0, 1)[1]
      into = into and tonumber(into)
      if not into or ts - into > L then into = open_block(ts) end
    end
    local block = sum_of(prefix .. 'block:' .. block_id(into), into + L + 35 * DAY)
    block.start = into
    span(block, ts)
    count(block, model, at)
    if into == start then current = block end

    local y, m, d = civil(ts)
    local midnight = ts - ts % DAY
    local month, day = string.format('%04d-%02d', y, m), string.format('%04d-%02d-%02d', y, m, d)
    local of_day = sum_of(prefix .. 'day:' .. day, midnight + 401 * DAY)
    if prices ~= '' then of_day.prices = prices end
    count(of_day, model, at)
    count(sum_of(prefix .. 'month:' .. month, midnight - (d - 1) * DAY + (31 + 5 * 365 + 2) * DAY), model, at)
    if agent ~= '' then
      count(sum_of(prefix .. 'agent:' .. agent .. ':' .. day, midnight + 401 * DAY), model, at)
      if session ~= '' then
        local s = sum_of(prefix .. 'session:' .. agent .. '/' .. session)
        s.keep = 7 * DAY -- after its last event
        span(s, ts)
        count(s, model, at)
      end
    end
    local slot = ts - ts % 10000
    local recent = sum_of(prefix .. 'recent:' .. int(slot / 1000), slot + 180000)
    recent.few = true
    add(recent.total, at)
  end
end

for _, s in ipairs(order) do
  for i = 1, s.few and 3 or #FIELDS do call('HINCRBY', s.key, FIELDS[i], int(s.total[i])) end
  for _, model in ipairs(s.names) do
    for i, v in ipairs(s.models[model]) do
      if v > 0 then call('HINCRBY', s.key, model .. ':' .. FIELDS[i], int(v)) end
    end
  end
  if s.first then
    local was = call('HMGET', s.key, 'first', 'last')
    s.first = math.min(s.first, tonumber(was[1]) or s.first)
    s.last = math.max(s.last, tonumber(was[2]) or s.last)
    call('HSET', s.key, 'first', int(s.first), 'last', int(s.last))
  end
  if s.start then call('HSET', s.key, 'start', int(s.start), 'end', int(s.start + L)) end
  if s.prices then call('HSET', s.key, 'prices', s.prices) end
  call('PEXPIREAT', s.key, int(s.expiry or s.last + s.keep))
end

-- The active block in one hash. A late event never changes it.
if current then
  local totals = call('HMGET', current.key, unpack(FIELDS))
  local now = { 'block', block_id(start), 'start', int(start), 'end', int(start + L), 'last', int(current.last) }
  for i, field in ipairs(FIELDS) do
    now[#now + 1] = field
    now[#now + 1] = totals[i] or '0'
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
call('ZREMRANGEBYSCORE', prefix .. 'blocks', '-inf', '(' .. int(start - 35 * DAY))

done = first + n - 1
call('HSET', KEYS[1], writer, table.concat({ int(done), int(epoch), int(seen), int(fork) }, ':'))
return { 'OK', done, n - skip, late }
