package agents_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/store"
)

// FuzzRecord: whatever stands in Redis, the agent is either refused or within rights
// that an operator could have set.
func FuzzRecord(f *testing.F) {
	f.Add(`{"hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","created":1,"expires":2,"models":["a*"]}`)
	f.Add(`{"created":1,"budgets":[{"window":"day","tokens":5}],"newer":{}}`)
	f.Add(`{"hash":"AA=="}`)
	f.Add(`null`)
	f.Add(`{"created":9223372036854775807,"expires":-1}`)
	f.Fuzz(func(t *testing.T, text string) {
		m := &memory{records: []store.AgentRecord{{ID: "bob", Version: 1, Text: text}}}
		book := agents.New(m, &ledger{}, (*recall.File)(nil), slog.New(slog.DiscardHandler))
		if err := book.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		e := book.ByID("bob")
		if e == nil {
			t.Fatal("it is as if there were no limits")
		}
		if e.Unreadable {
			if e.Token {
				t.Error("what cannot be read has a token")
			}
			return
		}
		if err := e.Check(e.Created); err != nil {
			t.Error(err)
		}
		if err := e.Begin(time.Now()); err == nil {
			e.End()
		}
	})
}
