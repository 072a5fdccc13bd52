package redisdb

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

// quietLibrary stops go-redis from writing to standard error by itself, once for
// the process, because the setting is global there. It prints a line for each
// failed dial; the prober logs each change of health once instead.
var quietLibrary = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

type silent struct{}

// Printf implements the logger of go-redis.
func (silent) Printf(context.Context, string, ...any) {}
