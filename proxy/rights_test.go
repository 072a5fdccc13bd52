package proxy

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/agents"
)

// What an agent does too much at a time is refused in the provider's shape, and others
// have nothing of it.
func TestRatesOfAnAgent(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		if strings.Contains(c.body, "slow") {
			c.wait(release)
		}
		served(c)
	})
	book := newBook(t)
	r := newRig(t, up.url(), 1, knowing(book))
	slow := strings.Replace(hello, "hello", "slow", 1)
	quick := create(t, book, agents.Agent{ID: "quick", Rates: agents.Rates{RequestsPerMinute: 6}})
	single := create(t, book, agents.Agent{ID: "single", Rates: agents.Rates{Concurrent: 1}})
	lone := create(t, book, agents.Agent{ID: "lone", Rates: agents.Rates{Connections: 1}})
	refused := func(token, wait string, closed bool) {
		t.Helper()
		status, header, text := r.asked(token, "/v1/messages", hello)
		if status != http.StatusTooManyRequests || header.Get("X-Authpool-Error") != "agent_limit" || wait != "" && header.Get("Retry-After") != wait ||
			header.Get("Retry-After") == "" || !strings.Contains(text, `"type":"rate_limit_error"`) || (header.Get("Connection") == "close") != closed {
			t.Errorf("%d %v %s", status, header, text)
		}
	}
	good := func(token string) {
		t.Helper()
		if status, _, text := r.asked(token, "/v1/messages", hello); status != 200 {
			t.Errorf("%d %s", status, text)
		}
	}
	good(quick)
	refused(quick, "", false)
	good(testToken)

	done := make(chan struct{})
	go func() {
		defer close(done)
		r.asked(single, "/v1/messages", slow)
	}()
	for len(up.requests()) < 3 {
		runtime.Gosched()
	}
	refused(single, "1", false)
	good(testToken)
	close(release)
	<-done
	late := time.Now().Add(30 * time.Second)
	for { // the answer ends a moment after the agent has it
		if status, _, _ := r.asked(single, "/v1/messages", hello); status == 200 {
			break
		}
		if time.Now().After(late) {
			t.Fatal("a request that has ended counts")
		}
	}

	c := r.dial()
	request := strings.Replace(messageRequest(message), testToken, lone, 1)
	for range 2 {
		_, _ = io.WriteString(c, request)
		if got, err := answers(c, 1, -1); err != nil || got[0].status != 200 {
			t.Fatalf("%v, %v", got, err)
		}
	}
	refused(lone, "1", true)
	_ = c.Close()
	late = time.Now().Add(30 * time.Second)
	for {
		if status, _, _ := r.asked(lone, "/v1/messages", hello); status == 200 {
			break
		}
		if time.Now().After(late) {
			t.Fatal("a connection that has ended counts")
		}
	}
}
