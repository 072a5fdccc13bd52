package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/authpool/authpool/bench/load"
	"github.com/authpool/authpool/bench/upstream"
)

// benchCase is one row of the table.
type benchCase struct {
	name        string
	connections int
	bodyKB      int
	answer      string // the header X-Bench
	answerBytes int
	unit        string // what CPU time is told of
	units       int    // how many of them a request has
}

func cases() []benchCase {
	var all []benchCase
	for _, kb := range []int{2, 200} {
		for _, connections := range []int{1, 16} {
			all = append(all, benchCase{
				name: fmt.Sprintf("JSON %d KB, %s", kb, conns(connections)), connections: connections, bodyKB: kb,
				answer: "json", answerBytes: upstream.JSONBytes(), unit: "request", units: 1,
			})
		}
	}
	for _, s := range []struct {
		pace        time.Duration
		connections int
		events      int
	}{{0, 1, 200}, {0, 16, 200}, {5 * time.Millisecond, 1, 100}, {5 * time.Millisecond, 16, 100}, {50 * time.Millisecond, 200, 20}} {
		name := "SSE at full speed, "
		if s.pace > 0 {
			name = fmt.Sprintf("SSE, an event each %s, ", s.pace)
		}
		all = append(all, benchCase{
			name: name + conns(s.connections), connections: s.connections, bodyKB: 2,
			answer: fmt.Sprintf("sse %d %s", s.events, s.pace), answerBytes: upstream.StreamBytes(s.events), unit: "event", units: s.events,
		})
	}
	return all
}

func conns(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// options is the load of a case at a target.
func (c benchCase) options(t target) load.Options {
	stream := ""
	if c.units > 1 {
		stream = `"stream":true,`
	}
	head := `{"model":"claude-haiku-4-5","max_tokens":1024,` + stream +
		`"metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"4f1c7a52-0b8e-4a7e-9d0a-5a8f1f3f2b11\"}"},` +
		`"system":"You are a careful engineer.","messages":[{"role":"user","content":"`
	const tail = `"}]}`
	body := head + strings.Repeat("Look at this code, say \\\"why\\\". ", c.bodyKB<<10/31)
	body = strings.TrimRight(body[:c.bodyKB<<10-len(tail)], `\`) + tail
	request := fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: application/json\r\nContent-Type: application/json\r\n"+
		"X-Api-Key: %s\r\nAnthropic-Version: 2023-06-01\r\nX-Bench: %s\r\nContent-Length: %d\r\n\r\n%s",
		t.address, t.key, c.answer, len(body), body)
	return load.Options{Address: t.address, Request: []byte(request), Connections: c.connections, BodyBytes: c.answerBytes}
}
