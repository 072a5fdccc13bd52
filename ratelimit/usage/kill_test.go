package usage_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// killedOptions have room for all that children write, however long it takes until
// they are dead.
var killedOptions = usage.JournalOptions{Sync: options.Sync, Max: 256 << 20, Keep: options.Keep}

// writeUntilKilled is the child: it adds events to two subscriptions, sends them to
// Redis, and writes a line on standard output for each that was acknowledged. It
// returns only when it cannot go on.
func writeUntilKilled(dir string) error {
	j, err := usage.OpenJournal(dir, killedOptions)
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: os.Getenv(childEnv + "_REDIS"), MaxRetries: -1})
	r := usage.NewRecorder(j, usage.NewStore(client, "authpool"), usage.RecorderOptions{Alarm: func(err error) { panic(err) }})
	r.Start(context.Background())
	for i := 0; ; i++ {
		e := event(time.Second)
		e.ID = fmt.Sprintf("%d-%d", os.Getpid(), i)
		e.Subscription = "team-" + strconv.Itoa(i%2)
		if i%3 == 0 {
			open := e
			open.Tokens = usage.Tokens{Input: 1}
			if err := r.Open(open); err != nil {
				return err
			}
		}
		if err := r.Add(e); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, e.Subscription); err != nil {
			return err
		}
	}
}

// TestKilledWriter kills a process in the middle of its work, many times on one
// folder, and starts the next one over it. In the end Redis has exactly the events
// that were acknowledged, and beside them at most the one that each life was about
// to acknowledge; what had been opened and not ended is an estimated event.
func TestKilledWriter(t *testing.T) {
	server := redistest.NewServer(t)
	dir := filepath.Join(t.TempDir(), "journal")
	added := map[string]int{}
	const lives = 8
	for life := range lives {
		added = addAll(added, runAndKill(t, dir, server.Addr(), 20+life*150))
		if life == lives/2 {
			server.Stop() // it loses everything
			server.Start()
		}
	}
	client := server.Client()
	a := &alarms{}
	r := usage.NewRecorder(openJournal(t, dir, killedOptions), usage.NewStore(client, "authpool"), usage.RecorderOptions{Alarm: a.add})
	r.Start(t.Context())
	flush(t, r)
	total, want := 0, 0
	estimated := 0
	for sub, n := range added {
		got := counted(t, client, sub)
		if got < n {
			t.Errorf("Redis has %d events of %s, %d were acknowledged", got, sub, n)
		}
		total, want = total+got, want+n
		e, _ := client.HGet(t.Context(), "authpool:{"+sub+"}:month:2096-02", "estimated").Int()
		estimated += e
	}
	if total > want+lives {
		t.Errorf("Redis has %d events, %d were acknowledged by %d lives", total, want, lives)
	}
	if estimated > lives {
		t.Errorf("%d estimated events of %d lives", estimated, lives)
	}
	a.want(t)
	stop(t, r)
}

func addAll(to, from map[string]int) map[string]int {
	for k, n := range from {
		to[k] += n
	}
	return to
}

// runAndKill runs a child until it has acknowledged some events and kills it. It
// returns how many events the child acknowledged.
func runAndKill(t *testing.T, dir, addr string, events int) map[string]int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_REDIS="+addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	added := map[string]int{}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); {
		added[lines.Text()]++
		if n++; n == events {
			// What it still writes until it is dead is read, too.
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return added
}
