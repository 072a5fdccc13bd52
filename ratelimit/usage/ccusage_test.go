package usage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"golang.org/x/tools/txtar"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

// ccusageEnv names the program that TestCcusage compares with; `make ccusage`
// installs it and sets this.
const ccusageEnv = "AUTHPOOL_CCUSAGE"

// byHand is one data set of testdata/ccusage: events, and what must come of them.
type byHand struct {
	name   string
	events []usage.Event // in the order in which they came
	blocks []handBlock   // of the events in the order of time
	gaps   []handGap     // between those blocks
	late   []handBlock   // of the events as they came; nil where that is the same
}

type handBlock struct {
	Start, End, Last time.Time
	Entries          int64
	Tokens           usage.Tokens
	CostNano         int64
}

type handGap struct{ From, To time.Time }

func readByHand(t *testing.T) []byHand {
	t.Helper()
	files, err := filepath.Glob("testdata/ccusage/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there is no data", err)
	}
	var sets []byHand
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		set := byHand{name: strings.TrimSuffix(filepath.Base(file), ".txtar")}
		for _, part := range archive.Files {
			for line := range strings.Lines(string(part.Data)) {
				if strings.HasPrefix(line, "#") {
					continue
				}
				cells := row{t: t, at: file + ": " + part.Name, cells: strings.Fields(line)}
				switch part.Name {
				case "events":
					set.events = append(set.events, cells.event())
				case "blocks":
					set.blocks = append(set.blocks, cells.block())
				case "gaps":
					set.gaps = append(set.gaps, handGap{cells.time(time.RFC3339), cells.time(time.RFC3339)})
				case "as they came":
					set.late = append(set.late, cells.block())
				default:
					t.Fatalf("%s has a part %q", file, part.Name)
				}
				if len(cells.cells) > 0 {
					t.Fatalf("%s: %q is too much", cells.at, cells.cells)
				}
			}
		}
		sets = append(sets, set)
	}
	return sets
}

// row is what is left of a line.
type row struct {
	t     *testing.T
	at    string
	cells []string
}

func (r *row) next() string {
	r.t.Helper()
	if len(r.cells) == 0 {
		r.t.Fatalf("%s: a line is too short", r.at)
	}
	cell := r.cells[0]
	r.cells = r.cells[1:]
	return cell
}

func (r *row) time(layout string) time.Time {
	r.t.Helper()
	at, err := time.Parse(layout, r.next())
	if err != nil {
		r.t.Fatalf("%s: %v", r.at, err)
	}
	return at
}

func (r *row) count() int64 {
	r.t.Helper()
	n, err := strconv.ParseInt(r.next(), 10, 64)
	if err != nil {
		r.t.Fatalf("%s: %v", r.at, err)
	}
	return n
}

func (r *row) tokens() usage.Tokens {
	return usage.Tokens{Input: r.count(), Output: r.count(), CacheWrite5m: r.count(), CacheWrite1h: r.count(), CacheRead: r.count()}
}

func (r *row) event() usage.Event {
	return usage.Event{
		Time: r.time(time.RFC3339).UnixMilli(), Model: r.next(), Tokens: r.tokens(), CostNanoUSD: r.count(),
		Subscription: "team-a", Agent: "coder", Session: "s1", PriceVersion: "v1",
	}
}

func (r *row) block() handBlock {
	start := r.time("2006-01-02T15:04Z07:00")
	return handBlock{start, start.Add(5 * time.Hour), r.time(time.RFC3339), r.count(), r.tokens(), r.count()}
}

// inTime returns the events in the order of time.
func (s *byHand) inTime() []usage.Event {
	events := slices.Clone(s.events)
	slices.SortStableFunc(events, func(a, b usage.Event) int { return int(a.Time - b.Time) })
	return events
}

// TestCostsByHand holds the price table to the costs of the data.
func TestCostsByHand(t *testing.T) {
	table := price.New()
	for _, set := range readByHand(t) {
		for _, e := range set.events {
			if nano, ok := table.Cost("anthropic", e.Model, e.Tokens, usage.Service{}); nano != e.CostNanoUSD || !ok {
				t.Errorf("%s: %+v of %s cost %d nano-dollars, %v; by hand %d", set.name, e.Tokens, e.Model, nano, ok, e.CostNanoUSD)
			}
		}
	}
}

// TestBlocksByHand drives the data through a Recorder.
func TestBlocksByHand(t *testing.T) {
	for _, set := range readByHand(t) {
		t.Run(set.name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
				r, a := start(t, filepath.Join(t.TempDir(), "journal"), usage.NewStore(client, "authpool"))
				record := func(sub string, events []usage.Event) {
					for _, e := range events {
						e.Subscription = sub
						if err := r.Add(e); err != nil {
							t.Fatal(err)
						}
						flush(t, r) // so that Redis gets them in this order
					}
				}
				record("in-time", set.inTime())
				if diff := cmp.Diff(set.blocks, blocksInRedis(t, client, "in-time")); diff != "" {
					t.Errorf("in the order of time (-by hand +Redis):\n%s", diff)
				}
				if set.late != nil {
					record("as-they-came", set.events)
					if diff := cmp.Diff(set.late, blocksInRedis(t, client, "as-they-came")); diff != "" {
						t.Errorf("in the order in which they came (-by hand +Redis):\n%s", diff)
					}
				}
				a.want(t)
			})
		})
	}
}

// blocksInRedis reads the blocks as a person would, by the contract's names.
func blocksInRedis(t *testing.T, client redis.UniversalClient, sub string) []handBlock {
	t.Helper()
	hashes, _ := dump(t, client, sub)
	var blocks []handBlock
	for name, hash := range hashes {
		if !strings.HasPrefix(name, "block:") {
			continue
		}
		n := func(field string) int64 {
			v, err := strconv.ParseInt(hash[field], 10, 64)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, field, err)
			}
			return v
		}
		at := func(field string) time.Time { return time.UnixMilli(n(field)).UTC() }
		blocks = append(blocks, handBlock{
			Start: at("start"), End: at("end"), Last: at("last"), Entries: n("requests"),
			Tokens: usage.Tokens{
				Input: n("input"), Output: n("output"),
				CacheRead: n("cache_read"), CacheWrite5m: n("cache_write_5m"), CacheWrite1h: n("cache_write_1h"),
			},
			CostNano: n("cost_nano_usd"),
		})
	}
	slices.SortFunc(blocks, func(a, b handBlock) int { return a.Start.Compare(b.Start) })
	return blocks
}

// TestCcusage runs the real ccusage on the data, written as Claude Code writes it,
// and compares its blocks with those worked out by hand, and so with Redis
// (TestBlocksByHand). ccusage does not tell the lives of cache writes apart in what
// it prints; its costs do.
func TestCcusage(t *testing.T) {
	program := os.Getenv(ccusageEnv)
	if program == "" {
		t.Skipf("%s is not set: run it by `make ccusage`", ccusageEnv)
	}
	for _, set := range readByHand(t) {
		t.Run(set.name, func(t *testing.T) {
			blocks, gaps := runCcusage(t, program, set.events)
			if diff := cmp.Diff(asCcusage(set.blocks), blocks); diff != "" {
				t.Errorf("blocks (-by hand +ccusage):\n%s", diff)
			}
			if diff := cmp.Diff(set.gaps, gaps); diff != "" {
				t.Errorf("gaps (-by hand +ccusage):\n%s", diff)
			}
		})
	}
}

// asCcusage returns blocks as ccusage prints them.
func asCcusage(blocks []handBlock) []handBlock {
	blocks = slices.Clone(blocks)
	for i := range blocks {
		t := &blocks[i].Tokens
		t.CacheWrite5m, t.CacheWrite1h = t.CacheWrite5m+t.CacheWrite1h, 0
	}
	return blocks
}

// TestCcusageAtRandom sets Redis directly beside ccusage, on events that like the
// borders of the rule.
func TestCcusageAtRandom(t *testing.T) {
	program := os.Getenv(ccusageEnv)
	if program == "" {
		t.Skipf("%s is not set: run it by `make ccusage`", ccusageEnv)
	}
	client := redistest.Mini(t)
	store, prices := usage.NewStore(client, "authpool"), price.New()
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 0))
		sub := fmt.Sprint("team-", seed)
		var events []usage.Event
		at, opened := epoch.UnixMilli(), epoch.UnixMilli()
		for range 400 {
			const hour = int64(time.Hour / time.Millisecond)
			switch random.IntN(8) {
			case 0: // at a border of the block that the last jump opened, or of one as long after it
				at = max(at, opened-opened%hour+5*hour+random.Int64N(3)-1)
			case 1: // as long after the last event as makes a gap, or nearly
				at += 5*hour + random.Int64N(3) - 1
				opened = at
			case 2: // on the hour
				at += hour - at%hour
			default:
				at += random.Int64N(hour)
			}
			e := usage.Event{
				Time: at, Agent: "coder", Session: "s1", Model: []string{"claude-sonnet-4-5", "claude-haiku-4-5"}[random.IntN(2)],
				Tokens: usage.Tokens{
					Input: random.Int64N(40_000), Output: random.Int64N(9000), CacheRead: random.Int64N(90_000),
					CacheWrite5m: random.Int64N(30_000), CacheWrite1h: random.Int64N(30_000), // below every tier in sum
				},
			}
			var priced bool
			if e.CostNanoUSD, priced = prices.Cost("anthropic", e.Model, e.Tokens, usage.Service{}); !priced {
				t.Fatalf("%s has no price", e.Model)
			}
			events = append(events, e)
		}
		for first := 0; first < len(events); first += 50 {
			b := batch(int64(first)+1, events[first:first+50]...)
			b.Subscription = sub
			apply(t, store, b)
		}
		blocks, _ := runCcusage(t, program, events)
		if diff := cmp.Diff(asCcusage(blocksInRedis(t, client, sub)), blocks); diff != "" {
			t.Fatalf("seed %d (-Redis +ccusage):\n%s", seed, diff)
		}
		t.Logf("seed %d: %d events in %d blocks", seed, len(events), len(blocks))
	}
}

// runCcusage writes events as a session of Claude Code and returns what ccusage
// makes of them, sorted by time.
func runCcusage(t *testing.T, program string, events []usage.Event) (blocks []handBlock, gaps []handGap) {
	t.Helper()
	home := t.TempDir()
	folder := filepath.Join(home, "projects", "data")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "session.jsonl"), claudeCode(t, events), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	// Its embedded prices, its own arithmetic, and none of this machine's data.
	cmd := exec.CommandContext(ctx, program, "claude", "blocks", "--json", "--offline", "--mode", "calculate", "--timezone", "UTC")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "CLAUDE_CONFIG_DIR=" + home}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ccusage failed: %v\n%s", err, stderr.String())
	}
	var report struct {
		Blocks []struct {
			StartTime, EndTime, ActualEndTime time.Time
			IsGap                             bool
			Entries                           int64
			CostUSD                           float64
			TokenCounts                       struct {
				InputTokens, OutputTokens, CacheCreationInputTokens, CacheReadInputTokens int64
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("ccusage printed %q: %v", out, err)
	}
	for _, b := range report.Blocks {
		if b.IsGap {
			gaps = append(gaps, handGap{b.StartTime, b.EndTime})
			continue
		}
		c := b.TokenCounts
		blocks = append(blocks, handBlock{
			Start: b.StartTime, End: b.EndTime, Last: b.ActualEndTime, Entries: b.Entries,
			Tokens:   usage.Tokens{Input: c.InputTokens, Output: c.OutputTokens, CacheWrite5m: c.CacheCreationInputTokens, CacheRead: c.CacheReadInputTokens},
			CostNano: int64(math.Round(b.CostUSD * 1e9)), // its floats are off by far less than a nano-dollar
		})
	}
	slices.SortFunc(blocks, func(a, b handBlock) int { return a.Start.Compare(b.Start) })
	slices.SortFunc(gaps, func(a, b handGap) int { return a.From.Compare(b.From) })
	return blocks, gaps
}

// claudeCode writes events as lines of Claude Code's session files.
func claudeCode(t *testing.T, events []usage.Event) []byte {
	t.Helper()
	var out bytes.Buffer
	for i, e := range events {
		line, err := json.Marshal(map[string]any{
			"type": "assistant", "timestamp": time.UnixMilli(e.Time).UTC().Format("2006-01-02T15:04:05.000Z"),
			"sessionId": e.Session, "version": "2.0.0", "requestId": fmt.Sprintf("req_%d", i),
			"message": map[string]any{
				"id": fmt.Sprintf("msg_%d", i), "model": e.Model,
				"usage": map[string]any{
					"input_tokens": e.Tokens.Input, "output_tokens": e.Tokens.Output,
					"cache_creation_input_tokens": e.Tokens.CacheWrite5m + e.Tokens.CacheWrite1h,
					"cache_read_input_tokens":     e.Tokens.CacheRead,
					"cache_creation": map[string]any{
						"ephemeral_5m_input_tokens": e.Tokens.CacheWrite5m, "ephemeral_1h_input_tokens": e.Tokens.CacheWrite1h,
					},
				},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}
