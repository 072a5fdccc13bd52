-- Records which subscription something belongs to that an answer has made.
-- KEYS 1: the resource (hash)
-- ARGV 1: subscription, 2: agent, 3: how long to keep it, in ms
-- Whose agent it is does not change when another one touches it.
if redis.call('HGET', KEYS[1], 'subscription') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'subscription', ARGV[1], 'agent', ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
