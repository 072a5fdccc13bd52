package embedded

import (
	"strings"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2/server"
)

// effect is what a command does to the keys among its arguments.
type effect uint8

const (
	unknown effect = iota // not taken at all
	control               // about the connection, scripts or messages: no key
	reads                 // reads keys
	writesFirst
	writesFirstTwo
	writesAll
	writesEveryOther // key, value, key, value…
	flushes          // deletes every key
)

// effects lists the commands that the store takes. Others are refused by name:
// a command whose keys are not known here could change what no snapshot holds,
// one that blocks would hold everybody up, and transactions and further databases
// have no user (scripts do what transactions would).
var effects = effectsOf(map[string]effect{
	"PING ECHO HELLO CLIENT QUIT TIME INFO EVAL EVALSHA EVAL_RO EVALSHA_RO SCRIPT " +
		"SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE PUBLISH PUBSUB": control,
	"GET MGET STRLEN GETRANGE EXISTS TYPE TTL PTTL EXPIRETIME PEXPIRETIME KEYS SCAN DBSIZE " +
		"HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HSCAN " +
		"SMEMBERS SCARD SISMEMBER SMISMEMBER SSCAN " +
		"ZRANGE ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYSCORE ZCARD ZCOUNT ZSCORE ZMSCORE ZRANK ZREVRANK ZSCAN " +
		"LRANGE LLEN LINDEX": reads,
	"SET SETNX SETEX PSETEX GETSET GETDEL GETEX APPEND SETRANGE INCR INCRBY INCRBYFLOAT DECR DECRBY " +
		"EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST " +
		"HSET HMSET HSETNX HDEL HINCRBY HINCRBYFLOAT " +
		"SADD SREM SPOP " +
		"ZADD ZINCRBY ZREM ZREMRANGEBYSCORE ZREMRANGEBYRANK ZPOPMIN ZPOPMAX " +
		"LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LSET LREM LTRIM LINSERT": writesFirst,
	"RENAME RENAMENX SMOVE RPOPLPUSH": writesFirstTwo,
	"DEL UNLINK":                      writesAll,
	"MSET MSETNX":                     writesEveryOther,
	"FLUSHALL FLUSHDB":                flushes,
})

// effectsOf turns lists of names into a table.
func effectsOf(lists map[string]effect) map[string]effect {
	table := map[string]effect{}
	for list, e := range lists {
		for name := range strings.FieldsSeq(list) {
			table[name] = e
		}
	}
	return table
}

// inspect is run by miniredis before every command, those inside a script too,
// with mu held. It refuses what the store does not take and notes what is
// written. It returns true when it has answered.
func (s *Store) inspect(peer *server.Peer, name string, args ...string) bool {
	switch e := effects[name]; e {
	case unknown:
		peer.WriteError("ERR the embedded Redis of authpool has no command '" + printable(name) + "'")
		return true
	case flushes:
		if s.touched != nil {
			peer.WriteError("ERR a durable connection does not delete everything")
			return true
		}
		clear(s.dirty)
		s.flushed = true
	case control, reads:
		if !safePatterns(name, args) {
			peer.WriteError("ERR this pattern is not supported: use * and ? only")
			return true
		}
		if name == "SUBSCRIBE" || name == "PSUBSCRIBE" {
			if s.touched != nil {
				peer.WriteError("ERR a durable connection takes no messages")
				return true
			}
			if s.calling != nil {
				s.calling.subscribed = true
			}
		}
	default:
		if s.opts.Snapshot != "" {
			s.markDirty(e, args)
		}
	}
	return false
}

func (s *Store) markDirty(e effect, args []string) {
	step, end := 1, len(args)
	if e == writesFirst {
		end = min(end, 1)
	}
	if e == writesFirstTwo {
		end = min(end, 2)
	}
	if e == writesEveryOther {
		step = 2
	}
	for i := 0; i < end; i += step {
		s.dirty[args[i]] = struct{}{}
		if s.touched != nil {
			s.touched[args[i]] = struct{}{}
		}
	}
}

// safePatterns keeps patterns away from miniredis that would end the process: it
// turns a pattern into a regular expression and panics when that does not
// compile, as with [z-a], a backslash before E, or bytes that are not UTF-8.
func safePatterns(name string, args []string) bool {
	switch name {
	case "KEYS", "PSUBSCRIBE", "PUNSUBSCRIBE", "PUBSUB", "SCAN", "HSCAN", "SSCAN", "ZSCAN":
	default:
		return true
	}
	for _, arg := range args {
		if !utf8.ValidString(arg) || strings.ContainsAny(arg, `[\`) {
			return false
		}
	}
	return true
}

// printable shortens a name that a caller chose for use in an answer.
func printable(name string) string {
	if len(name) > 32 {
		name = name[:32]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}
