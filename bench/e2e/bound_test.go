package e2e

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// makeAnswer has an answer stored and returns its id and who has it.
func (a *authpool) makeAnswer(t *testing.T, session string, stream bool) (id, owner string) {
	t.Helper()
	resp, err := roundTrip(a.ask(t, "/v1/responses", fmt.Sprintf(`{"model":"gpt-5.1","stream":%t,"input":"hello"}`, stream), "X-Authpool-Session", session))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	id = regexp.MustCompile(`resp_\w+`).FindString(string(body))
	if err != nil || resp.StatusCode != http.StatusOK || id == "" {
		t.Fatalf("%d %v %s", resp.StatusCode, err, body)
	}
	return id, resp.Header.Get("X-Authpool-Subscription")
}

// next asks for an answer that goes on from the one with the id.
func (a *authpool) next(t *testing.T, session, id string) *http.Request {
	t.Helper()
	return a.ask(t, "/v1/responses", fmt.Sprintf(`{"model":"gpt-5.1","previous_response_id":%q,"input":"more"}`, id), "X-Authpool-Session", session)
}

// What an agent had one process make, another process finds where it is: at once,
// after the first was killed, and once Redis is back also what was made without it.
func TestTwoProcessesKnowWhatIsBound(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	fleet := []*authpool{
		startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()}),
		startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()}),
	}
	owners := map[string]bool{}
	var last, lastOwner string
	for i := range 12 {
		id, owner := fleet[i%2].makeAnswer(t, fmt.Sprint("maker-", i), i%3 == 0)
		owners[owner] = true
		last, lastOwner = id, owner
		if s := fleet[(i+1)%2].send(fleet[(i+1)%2].next(t, fmt.Sprint("user-", i), id)); s.status != http.StatusOK || s.subscription != owner {
			t.Errorf("%s: %+v, want 200 by %s", id, s, owner)
		}
	}
	if len(owners) != 2 {
		t.Errorf("all was made by %v: nothing is proved", owners)
	}
	c := r.client(t)
	key := "authpool:resource:{" + last + "}"
	if got := c.HGetAll(t.Context(), key).Val(); got["subscription"] != lastOwner || got["agent"] == "" {
		t.Errorf("%s: %v", key, got)
	}
	if left := c.TTL(t.Context(), key).Val(); left < 29*24*time.Hour || left > 30*24*time.Hour {
		t.Errorf("%s is kept for %v, want 30 days", key, left)
	}

	// Without Redis each goes on with what it knows, and tells it afterwards.
	r.stop(t)
	id, owner := fleet[0].makeAnswer(t, "without redis", false)
	if s := fleet[0].send(fleet[0].next(t, "another", id)); s.status != http.StatusOK || s.subscription != owner {
		t.Errorf("without Redis: %+v, want 200 by %s", s, owner)
	}
	r.start(t)
	key = "authpool:resource:{" + id + "}"
	eventually(t, func() error {
		if got := c.HGet(t.Context(), key, "subscription").Val(); got != owner {
			return fmt.Errorf("%s: %q, want %s", key, got, owner)
		}
		return nil
	})
	fleet[0].kill(t)
	if s := fleet[1].send(fleet[1].next(t, "after the kill", id)); s.status != http.StatusOK || s.subscription != owner {
		t.Errorf("after the kill: %+v, want 200 by %s", s, owner)
	}
}
