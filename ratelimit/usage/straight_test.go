package usage_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// replica remembers the scripts that a database has run, so that it can be put back
// to where it stood some calls ago: a fail-over to a replica that lacks the last
// writes. It can also lose a call or its answer.
type replica struct {
	client redis.UniversalClient
	ran    [][]any // the scripts' calls
	quiet  bool    // it is replaying
	lose   failure // what happens to the call after that many others
	after  int
}

func (r *replica) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *replica) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (r *replica) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if r.quiet || cmd.Name() != "evalsha" && cmd.Name() != "eval" {
			return next(ctx, cmd)
		}
		lost := works
		if r.after--; r.after < 0 {
			lost, r.lose = r.lose, works
		}
		if lost == lostRequest {
			cmd.SetErr(errBroken)
			return errBroken
		}
		if err := next(ctx, cmd); err != nil {
			return err
		}
		r.ran = append(r.ran, cmd.Args())
		if lost == lostAnswer {
			cmd.SetErr(errBroken)
			return errBroken
		}
		return nil
	}
}

// failOver loses all calls after the first n.
func (r *replica) failOver(t tb, n int) {
	t.Helper()
	empty(t, r.client)
	r.quiet, r.ran = true, r.ran[:n]
	for _, args := range r.ran {
		if err := r.client.Do(context.Background(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	r.quiet = false
}

// process is an authpool with a journal, and does what a Recorder does.
type process struct {
	journal []usage.Event
	opened  int // how many events the journal had when the process started
	acked   int
	writer  string
	base    int // how many events are not this writer's
	epoch   int64
	twin    *process // the other one when a folder was copied
}

// twofold tells that another process still writes under the same id. Until one of
// them has met the fence, neither may start again.
func (p *process) twofold() bool { return p.twin != nil && p.twin.writer == p.writer }

func (p *process) renumber(writer string) { p.writer, p.base, p.epoch = writer, p.acked, 0 }

// send sends events from before acked on, n in all, and obeys the answer. Without an
// answer it does nothing. It tells whether all was well.
func (p *process) send(t tb, store *usage.Store, newWriter func() string, clock *time.Duration, from, n int) bool {
	t.Helper()
	ctx := context.Background()
	if p.epoch == 0 {
		*clock += time.Second // of those who start
		c, err := store.Claim(ctx, "team-a", p.writer, int64(max(p.opened-p.base, 0)), epoch.Add(*clock))
		switch {
		case errors.Is(err, errBroken):
			return false
		case err != nil:
			t.Fatal(err)
		case c.Ahead:
			p.acked = max(p.acked, p.opened)
			p.renumber(newWriter())
			return false
		}
		p.epoch, p.acked = c.Epoch, p.base+int(c.Last)
		return false
	}
	from = max(from, p.base)
	b := usage.Batch{
		Subscription: "team-a", Writer: p.writer, Epoch: p.epoch, First: int64(from - p.base + 1),
		Events: p.journal[from:min(from+n, len(p.journal))],
	}
	r, err := store.Apply(ctx, b)
	switch {
	case errors.Is(err, errBroken):
		return false
	case err != nil:
		t.Fatal(err)
	case r.Outcome == usage.Gap:
		p.acked = p.base + int(r.Last)
		return false
	case r.Outcome == usage.Fenced:
		p.acked = max(p.acked, min(p.base+int(r.Fork), len(p.journal)))
		p.renumber(newWriter())
		return false
	}
	p.acked = max(p.acked, from+len(b.Events))
	return true
}

// TestAnyRunEqualsTheStraightRun: whatever becomes of processes, connections and
// Redis, in the end each answer and each item of a batch is counted once. The straight
// run is that of a single process in the order of time.
func TestAnyRunEqualsTheStraightRun(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		server := &replica{client: client}
		client.AddHook(server)
		store := usage.NewStore(client, "authpool")
		rapid.Check(t, func(t *rapid.T) {
			empty(t, client)
			server.ran, server.lose = nil, works
			var (
				all   []usage.Event // in the order in which they came to be
				kept  int           // calls that no fail-over loses
				names int
				clock int64
				// starts is the clock of processes that start.
				starts time.Duration
			)
			newWriter := func() string {
				names++
				// Numbers under a former name are never sent again: a
				// Redis that loses them is an alarm, see ErrLost.
				kept = len(server.ran)
				return fmt.Sprint("w", names)
			}
			processes := []*process{{writer: newWriter()}, {writer: newWriter()}}
			for range rapid.IntRange(1, 20).Draw(t, "steps") {
				p := processes[rapid.IntRange(0, len(processes)-1).Draw(t, "process")]
				switch rapid.SampledFrom([]string{"add", "add", "add", "read again", "send", "send", "send", "break", "restart", "copy", "restore", "fail over"}).Draw(t, "step") {
				case "add":
					for range rapid.IntRange(1, 12).Draw(t, "events") {
						clock += rapid.SampledFrom([]int64{0, 1, 400, 11_000, hour, block, block + 1, day, -hour, -6 * hour}).Draw(t, "time")
						e := drawEvent(t, clock)
						e.ID, e.PriceVersion = fmt.Sprint("event-", len(all)), "v1"
						if e.Batch != "" {
							// Each item is told once; "read again" repeats it.
							e.Item = e.ID
						}
						p.journal, all = append(p.journal, e), append(all, e)
					}
				case "read again":
					for i, e := range all {
						if e.Batch != "" && rapid.Bool().Draw(t, "again") {
							e.ID = fmt.Sprint("again-", i, "-", len(p.journal), "-", names)
							names++
							p.journal = append(p.journal, e)
						}
					}
				case "send":
					p.send(t, store, newWriter, &starts, rapid.IntRange(max(0, p.acked-7), p.acked).Draw(t, "from"), rapid.IntRange(0, 30).Draw(t, "n"))
				case "break":
					server.lose = rapid.SampledFrom([]failure{lostRequest, lostAnswer}).Draw(t, "loss")
					server.after = rapid.IntRange(0, 2).Draw(t, "after")
					p.send(t, store, newWriter, &starts, p.acked, 30)
					server.lose = works
				case "restart":
					// Before its first claim a restored folder does not know
					// that it is one.
					if p.epoch > 0 && !p.twofold() {
						p.epoch, p.opened = 0, len(p.journal)
					}
				case "copy":
					if p.epoch == 0 || p.twofold() {
						continue
					}
					c := *p
					c.journal, c.opened, c.epoch, c.twin = slices.Clone(p.journal), len(p.journal), 0, p
					p.twin = &c
					c.send(t, store, newWriter, &starts, c.acked, 0) // its claim
					processes, kept = append(processes, &c), len(server.ran)
				case "restore":
					// What was not counted would be lost with the newer folder.
					if p.twofold() || !p.send(t, store, newWriter, &starts, p.acked, 0) || p.acked < len(p.journal) {
						continue
					}
					p.journal = p.journal[:rapid.IntRange(p.base, len(p.journal)).Draw(t, "restored")]
					p.epoch, p.opened, p.acked, kept = 0, len(p.journal), len(p.journal), len(server.ran)
				case "fail over":
					server.failOver(t, rapid.IntRange(kept, len(server.ran)).Draw(t, "kept"))
				}
			}
			for again := true; again; {
				again = false
				for _, p := range processes {
					again = !p.send(t, store, newWriter, &starts, p.acked, 100) || p.acked < len(p.journal) || again
				}
			}
			equalsStraightRun(t, client, all)
		})
	})
}

// equalsStraightRun compares what Redis holds with what a single process makes of
// events. The borders of blocks depend on the order in which events come, what is in
// all of them does not.
func equalsStraightRun(t tb, client redis.UniversalClient, events []usage.Event) {
	t.Helper()
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b usage.Event) int { return cmp.Compare(a.Time, b.Time) })
	straight := newModel()
	if len(events) > 0 {
		straight.apply(batch(1, events...))
	}
	got, _ := dump(t, client, "team-a")
	want := maps.Clone(straight.hashes)
	gotBlocks, wantBlocks := takeBlocks(got), takeBlocks(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Fatalf("the hashes differ (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(wantBlocks, gotBlocks); diff != "" {
		t.Fatalf("the blocks together differ (-want +got):\n%s", diff)
	}
}

// takeBlocks takes the blocks out of hashes and adds them up.
func takeBlocks(hashes map[string]map[string]string) map[string]int64 {
	sums := map[string]int64{}
	for name, hash := range hashes {
		if name != "now" && !strings.HasPrefix(name, "block:") {
			continue
		}
		delete(hashes, name)
		for field, v := range hash {
			if n, err := strconv.ParseInt(v, 10, 64); name != "now" && err == nil && !slices.Contains([]string{"start", "end", "first", "last"}, field) {
				sums[field] += n
			}
		}
	}
	return sums
}
