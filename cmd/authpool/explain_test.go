package main

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/explain"
)

// crowded has what is rare: a wait behind others, with an end that is known, many
// candidates and choices, a choice without Redis, of a source that is not known here.
var crowded = func() explain.Request {
	began := time.Date(2026, 11, 22, 23, 59, 0, 0, time.UTC)
	until := began.Add(30 * time.Hour)
	return explain.Request{
		ID: "019abcde-0000-7000-8000-000000000009", Start: began, Agent: "default", Provider: "openai", Endpoint: "responses",
		Status: 200, End: "whole", Subscription: "team-a", Took: explain.Seconds(3 * time.Minute),
		Tokens: explain.Tokens{Input: 1234, Output: 5, CacheWrite5m: 1, CacheWrite1h: 2},
		Choices: []explain.Choice{
			{
				Subscription: "team-a", Source: "new", ByHash: true, Omitted: 1234,
				Candidates: []explain.Candidate{{Subscription: "team-a"}, {Subscription: "b", Obstacle: "metered", Reason: "rate", Until: &until}},
				Wait:       &explain.Wait{For: explain.Seconds(time.Second), Ahead: 12, Own: 3, Subscription: "b", Reason: "rate", Until: &until},
				Attempt:    &explain.Attempt{At: explain.Seconds(1234567), Verdict: explain.Verdict{Signal: "network", Reason: "reset", Scope: "subscription", Row: "network"}, Error: "it broke"},
			},
			strategic("least_used", explain.Standing{Used: 0.4567, Sessions: 1, InFlight: 2}),
			strategic("drain_soonest", explain.Standing{ExpiresIn: explain.Seconds(90 * time.Minute)}),
			strategic("drain_soonest", explain.Standing{ExpiresIn: explain.Seconds(pool.WindowNews)}),
			strategic("drain_soonest", explain.Standing{}), strategic("round_robin", explain.Standing{Turn: 2.5}), strategic("priority", explain.Standing{}),
			{
				Subscription: "b", Source: "lent", Owner: "b", Pinned: true,
			},
		},
		MoreChoices: 1,
	}
}()

// strategic is a choice by a strategy that looks at s.
func strategic(strategy string, s explain.Standing) explain.Choice {
	return explain.Choice{
		Subscription: "b", Source: "new", Strategy: strategy,
		Candidates: []explain.Candidate{{
			Subscription: "b", Priority: 1, Standing: &s,
			Score: &explain.Score{Total: 25, Availability: 1, Headroom: 1, Soundness: 1, Swiftness: 0.25, Idleness: 1},
		}},
	}
}

// TestRequestText puts in words what the proxy's own test remembers of requests
// that go different ways.
func TestRequestText(t *testing.T) {
	text, err := os.ReadFile("../../proxy/testdata/explained.json")
	if err != nil {
		t.Fatal(err)
	}
	var told map[string][]explain.Request
	if err := json.Unmarshal(text, &told); err != nil {
		t.Fatal(err)
	}
	told["waiting"] = append(told["waiting"], crowded)
	var got strings.Builder
	for _, name := range slices.Sorted(maps.Keys(told)) {
		got.WriteString("== " + name + "\n\n" + requestsTable(told[name]) + "\n")
		for i := range told[name] {
			got.WriteString(requestText(&told[name][i]) + "\n")
		}
	}
	const golden = "testdata/explained.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", golden, diff)
	}
}
