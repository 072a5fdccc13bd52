-- Claims the next epoch of a writer for one subscription, which fences off
-- whoever wrote under the same id before.
--
-- KEYS  1 writers
-- ARGV  1 writer, 2 highest number the claimant gave out before it started, 3 its time in ms
--
-- Answers: OK last epoch, or AHEAD last epoch when more was counted than the
-- claimant knows of; then nothing changed.
--
-- An epoch is the time of the claim, or one more than the last one: so it is new also
-- when a fail-over has lost the last one. An entry is last:epoch:time:fork. The fork
-- is the claimant's highest number: up to there its numbers mean the same events as
-- those of whoever it fences off.
local done, epoch, time = 0, 0, tonumber(ARGV[3])
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if entry then
  local a, b, c = string.match(entry, '^(%d+):(%d+):(%d+):%d+$')
  if not a then return redis.error_reply('ERR entry of writer ' .. ARGV[1] .. ' is malformed') end
  done, epoch, time = tonumber(a), tonumber(b), math.max(time, tonumber(c))
  if done > tonumber(ARGV[2]) then return { 'AHEAD', done, epoch } end
end
epoch = math.max(epoch + 1, tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], ARGV[1],
  string.format('%.0f:%.0f:%.0f:%s', done, epoch, time, ARGV[2]))
return { 'OK', done, epoch }
