package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// addAll is the shape of the scripts that the product runs: many HINCRBYs on keys
// of one hash tag.
var addAll = redis.NewScript(`
for i = 1, 20 do
	redis.call('HINCRBY', KEYS[1], 'field' .. i, ARGV[1])
end
return redis.call('HGET', KEYS[1], 'field20')`)

func TestScriptsRunOverMemory(t *testing.T) {
	_, client := open(t, Options{})
	ctx := t.Context()
	for want := range 3 {
		got, err := addAll.Run(ctx, client, []string{"authpool:{a}:now"}, 1).Text()
		if err != nil || got != fmt.Sprint(want+1) {
			t.Fatalf("run %d: got %q, %v", want, got, err)
		}
	}
}

func TestParallelClients(t *testing.T) {
	_, client := open(t, Options{})
	ctx := t.Context()
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			for range 20 {
				if err := client.HIncrBy(ctx, "h", "n", 1).Err(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n, err := client.HGet(ctx, "h", "n").Int(); n != 1000 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestKeysExpireByTheTicker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := open(t, Options{})
		ctx := t.Context()
		if err := client.Set(ctx, "k", "v", 10*time.Second).Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second)
		if n := client.Exists(ctx, "k").Val(); n != 1 {
			t.Error("the key ended early")
		}
		time.Sleep(3 * time.Second)
		if n := client.Exists(ctx, "k").Val(); n != 0 {
			t.Error("the key outlived its time")
		}
	})
}

func TestRefusedCommands(t *testing.T) {
	_, client := open(t, Options{})
	for _, command := range []string{
		"BLPOP list 0", "XADD s * a b", "PFADD p a", "SELECT 1", "MULTI", "SWAPDB 0 1", "NOSUCH a", "CONFIG GET *",
		// These would end the process inside miniredis.
		"KEYS [z-a]", `KEYS \\E(`, "KEYS \xff", `SCAN 0 MATCH [\E]`, "PUBSUB CHANNELS [z-a]",
	} {
		t.Run(command, func(t *testing.T) {
			var args []any
			for arg := range strings.FieldsSeq(command) {
				args = append(args, arg)
			}
			if err := client.Do(t.Context(), args...).Err(); err == nil || !strings.HasPrefix(err.Error(), "ERR ") {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	t.Run("inside a script", func(t *testing.T) {
		err := client.Eval(t.Context(), `return redis.call('KEYS', '[z-a]')`, nil).Err()
		if err == nil || !strings.Contains(err.Error(), "pattern is not supported") {
			t.Errorf("got %v, want a refusal", err)
		}
	})
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("the store does not answer any more: %v", err)
	}
}

func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := open(t, Options{})
		ctx := t.Context()
		sub := client.Subscribe(ctx, "hints")
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := client.Publish(ctx, "hints", "hello").Result(); n != 1 || err != nil {
			t.Fatalf("published to %d, %v", n, err)
		}
		message, err := sub.ReceiveMessage(ctx)
		if err != nil || message.Payload != "hello" {
			t.Fatalf("got %v, %v", message, err)
		}
		// A subscriber that is gone must not be published to: miniredis would wait for it.
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n, err := client.Publish(ctx, "hints", "again").Result(); n != 0 || err != nil {
			t.Errorf("published to %d, %v after the subscriber left", n, err)
		}
	})
}

// A subscriber that does not read would hold up every command if its messages
// were written to it while miniredis holds its lock.
func TestSleepingSubscriberDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := open(t, Options{})
		ctx := t.Context()
		conn, err := s.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(appendRequest(nil, "SUBSCRIBE", "hints")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		payload := strings.Repeat("x", 1<<10)
		for range 1000 {
			if n, err := client.Publish(ctx, "hints", payload).Result(); n != 1 || err != nil {
				t.Fatalf("published to %d, %v", n, err)
			}
		}
		// Nor may it collect messages without end.
		big := strings.Repeat("x", 16<<20)
		for range maxPending/len(big) + 1 {
			if err := client.Publish(ctx, "hints", big).Err(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("the end of the connection: %v", err)
		}
		if n, err := client.Publish(ctx, "hints", payload).Result(); n != 0 || err != nil {
			t.Errorf("published to %d, %v after the subscriber was cut", n, err)
		}
	})
}

func TestDialAfterClose(t *testing.T) {
	s, client := open(t, Options{})
	ctx := t.Context()
	if err := client.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := client.Ping(ctx).Err(); err == nil {
		t.Error("a closed store answers")
	}
	if _, err := s.Dial(ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// miniredis' own ClockTTL walks all keys at every access, 20 times in a script of
// 20 commands. It would also end a key at the moment its time is over; here that
// happens at the next tick and never in between.
func TestKeysAgeAtTheTickOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := open(t, Options{})
		ctx := t.Context()
		if err := client.Set(ctx, "k", "v", 500*time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(900 * time.Millisecond)
		if n := client.Exists(ctx, "k").Val(); n != 1 {
			t.Error("an access between two ticks aged the keys")
		}
		time.Sleep(200 * time.Millisecond)
		if n := client.Exists(ctx, "k").Val(); n != 0 {
			t.Error("the tick did not age the keys")
		}
	})
}

// fill makes n hashes with a time to live.
func fill(t testing.TB, client redis.UniversalClient, n int) {
	t.Helper()
	ctx := context.Background()
	for first := 0; first < n; first += 1000 {
		_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := first; i < first+1000; i++ {
				key := fmt.Sprintf("authpool:{sub-%d}:session:default/%d", i%20, i)
				pipe.HSet(ctx, key, "requests", i, "input", 2*i, "output", 3*i, "cache_read", 4*i, "cost_nano_usd", 5*i)
				pipe.Expire(ctx, key, 24*time.Hour)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
