package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// auditLines is about how many lines an AuditStream keeps; the files keep more.
const auditLines = 100_000

// AuditStream is the copy of one audit log: see audit.Stream. The id of each
// entry is the line's seq, so that none can stand there twice or out of order.
type AuditStream struct {
	client redis.UniversalClient
	key    string
}

// AuditStream returns the stream of the log that has this name.
func (s *Store) AuditStream(log string) *AuditStream {
	return &AuditStream{s.client, s.prefix + ":audit:{" + log + "}"}
}

// Last is the last line that is there, with its seq; 0: there is none.
func (a *AuditStream) Last(ctx context.Context) (seq uint64, line []byte, err error) {
	entries, err := a.client.XRevRangeN(ctx, a.key, "+", "-", 1).Result()
	if err != nil {
		return 0, nil, fmt.Errorf("cannot read the audit stream: %w", err)
	}
	if len(entries) == 0 {
		return 0, nil, nil
	}
	digits, _, _ := strings.Cut(entries[0].ID, "-")
	if seq, err = strconv.ParseUint(digits, 10, 64); err != nil {
		return 0, nil, fmt.Errorf("cannot read the audit stream: an entry has the id %q", entries[0].ID)
	}
	text, _ := entries[0].Values["line"].(string)
	return seq, []byte(text), nil
}

// Append puts lines behind, each with its seq, in order. One that is there already is
// passed over.
func (a *AuditStream) Append(ctx context.Context, seqs []uint64, lines [][]byte) error {
	replies, err := a.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, line := range lines {
			pipe.XAdd(ctx, &redis.XAddArgs{
				Stream: a.key, ID: strconv.FormatUint(seqs[i], 10) + "-1", MaxLen: auditLines, Approx: true,
				Values: []any{"line", line},
			})
		}
		return nil
	})
	for _, reply := range replies {
		if e := reply.Err(); e != nil && !strings.Contains(e.Error(), "equal or smaller") { // there already
			return fmt.Errorf("cannot write to the audit stream: %w", e)
		}
	}
	if len(replies) == 0 && err != nil {
		return fmt.Errorf("cannot write to the audit stream: %w", err)
	}
	return nil
}
