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

// folder is what a process keeps on disk.
type folder struct {
	journal []usage.Event
	lives   usage.Lives
	acked   int
	writer  string
	base    int // how many events are not this writer's
}

// copied returns the folder as a copy of it has it.
func (f folder) copied() folder {
	f.journal, f.lives = slices.Clone(f.journal), slices.Clone(f.lives)
	return f
}

// livesSince are the lives that numbered something for the folder's writer.
func (f *folder) livesSince() usage.Lives {
	var lives usage.Lives
	for i, life := range f.lives {
		if i+1 == len(f.lives) || f.lives[i+1].After > int64(f.base) {
			lives = append(lives, usage.Life{ID: life.ID, After: max(life.After-int64(f.base), 0)})
		}
	}
	return lives
}

// process is an authpool with a journal, and does what a Recorder does.
type process struct{ folder }

// open opens the folder, lag events of which are counted and not noted.
func (p *process) open(life string, lag int) {
	n := len(p.lives)
	if n > 0 && p.lives[n-1].After == int64(len(p.journal)) {
		p.lives = p.lives[:n-1]
	}
	p.lives = append(p.lives, usage.Life{ID: life, After: int64(len(p.journal))})
	p.acked = max(p.base, p.acked-lag)
}

// leave goes on under another writer after what another folder has, too.
func (p *process) leave(t tb, fork int64) {
	t.Helper()
	if fork < 0 {
		t.Fatalf("it cannot be told where %v parts", p.lives)
	}
	p.acked = min(p.base+int(fork), len(p.journal))
	life := ""
	for _, l := range p.lives {
		if life == "" || l.After <= int64(p.acked) {
			life = l.ID
		}
	}
	p.writer, p.base = fmt.Sprintf("%s-%d-%s", p.writer, p.acked, life), p.acked
}

// send sends events from before acked on, n in all, and obeys the answer. Without an
// answer it does nothing. It tells whether all was well; left is called when the
// writer changes.
func (p *process) send(t tb, store *usage.Store, left func(), from, n int) bool {
	t.Helper()
	from = max(from, p.base)
	b := usage.Batch{
		Subscription: "team-a", Writer: p.writer, Lives: p.livesSince(), First: int64(from - p.base + 1),
		Events: p.journal[from:min(from+n, len(p.journal))],
	}
	r, err := store.Apply(context.Background(), b)
	switch {
	case errors.Is(err, errBroken):
		return false
	case err != nil:
		t.Fatal(err)
	case r.Outcome == usage.Gap:
		p.acked = p.base + int(r.Last)
		return false
	case r.Outcome == usage.Fenced:
		p.leave(t, r.Fork)
		left()
		return false
	}
	p.acked = p.base + int(r.Last)
	return true
}

// TestAnyRunEqualsTheStraightRun: whatever becomes of processes, their folders,
// connections and Redis, in the end each answer and each item of a batch is counted once. The straight
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
			)
			life := func() string {
				names++
				return fmt.Sprint("life", names)
			}
			// Numbers under a former writer are never sent again: a Redis that
			// loses them is an alarm, see ErrLost.
			left := func() { kept = len(server.ran) }
			var processes []*process
			for _, writer := range []string{"w1", "w2"} {
				p := &process{folder{writer: writer}}
				p.open(life(), 0)
				processes = append(processes, p)
			}
			var backups []folder
			for range rapid.IntRange(1, 25).Draw(t, "steps") {
				p := processes[rapid.IntRange(0, len(processes)-1).Draw(t, "process")]
				switch rapid.SampledFrom([]string{"add", "add", "add", "read again", "send", "send", "send", "break", "restart", "copy", "back up", "restore", "fail over"}).Draw(t, "step") {
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
					p.send(t, store, left, rapid.IntRange(max(0, p.acked-7), p.acked).Draw(t, "from"), rapid.IntRange(0, 30).Draw(t, "n"))
				case "break":
					server.lose = rapid.SampledFrom([]failure{lostRequest, lostAnswer}).Draw(t, "loss")
					server.after = rapid.IntRange(0, 2).Draw(t, "after")
					p.send(t, store, left, p.acked, 30)
					server.lose = works
				case "restart":
					p.open(life(), rapid.IntRange(0, 3).Draw(t, "lag"))
				case "copy":
					c := &process{p.copied()}
					c.open(life(), 0)
					processes = append(processes, c)
				case "back up":
					backups = append(backups, p.copied())
				case "restore":
					// What was not counted would be lost with the newer folder.
					if len(backups) == 0 || !p.send(t, store, left, p.acked, 100) || p.acked < len(p.journal) {
						continue
					}
					p.folder, kept = rapid.SampledFrom(backups).Draw(t, "backup").copied(), len(server.ran)
					p.open(life(), 0)
				case "fail over":
					server.failOver(t, rapid.IntRange(kept, len(server.ran)).Draw(t, "kept"))
				}
			}
			for again := true; again; {
				again = false
				for _, p := range processes {
					again = !p.send(t, store, left, p.acked, 100) || p.acked < len(p.journal) || again
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
