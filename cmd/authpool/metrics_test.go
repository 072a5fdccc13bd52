package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/bench/simulator"
)

// metricsTable is what operators read.
const metricsTable = "../../proxy/admin/METRICS.md"

const metricsPreface = `# Metrics

What ` + "`/metrics`" + ` tells, beside Go's and the process' own (` + "`go_*`, `process_*`" + `). A counter begins at 0 when
` + "`serve`" + ` starts and is of that process alone; what comes from Redis (blocks, windows, budgets, sessions) is the fleet's.

No label holds what agents choose: ids of subscriptions and providers and hosts of webhooks are the operator's own,
windows are named by the provider (at most 32 of a subscription), and the rest are closed lists.

This table is made from the code, and a test holds it equal to it: ` + "`go test ./cmd/authpool -run TestMetrics -update`" + `.

| metric | type | labels | what it tells |
| --- | --- | --- | --- |
`

// boundedLabels are the labels that there may be: each has few values. An agent, a
// session, a model, a path or an address is none.
var boundedLabels = []string{
	"action", "code", "commit", "direction", "go", "host", "kind", "limit", "mark", "mode", "outcome", "percent", "provider", "reason", "result", "signal",
	"source", "state", "subscriber", "subscription", "version", "who", "why", "window",
}

// asker is an agent, and a Prometheus.
var asker = http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// declared is one metric as the code declares it.
type declared struct {
	name, kind, help string
	labels           []string // sorted
}

func (d *declared) row() string {
	labels := "-"
	if len(d.labels) > 0 {
		labels = "`" + strings.Join(d.labels, "`, `") + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |\n", d.name, d.kind, labels, strings.ReplaceAll(d.help, "|", `\|`))
}

func TestMetricsTable(t *testing.T) {
	all := declaredMetrics(t)
	var want strings.Builder
	want.WriteString(metricsPreface)
	for i, d := range all {
		if i > 0 && all[i-1].name == d.name {
			t.Errorf("%s is declared twice", d.name)
		}
		for _, label := range d.labels {
			if !slices.Contains(boundedLabels, label) {
				t.Errorf("%s: the label %s is not known to be bounded", d.name, label)
			}
		}
		if d.help == "" || (d.kind == "counter") != strings.HasSuffix(d.name, "_total") {
			t.Errorf("%s: a %s with the help %q", d.name, d.kind, d.help)
		}
		want.WriteString(d.row())
	}
	if *update {
		if err := os.WriteFile(metricsTable, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(metricsTable)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("proxy/admin/METRICS.md is not what the code says; -update rewrites it (-code +table):\n%s", diff)
	}
}

// TestMetricsOfARunningServe are those of the table, and all that were asked for are
// among them.
func TestMetricsOfARunningServe(t *testing.T) {
	s := startFailover(t)
	table := map[string]declared{}
	for _, d := range declaredMetrics(t) {
		table[d.name] = d
	}
	if _, err := s.settled(t.Context()); err != nil { // the block, too, is counted
		t.Fatal(err)
	}
	seen := scrape(t, "http://"+s.service.adminListener.Addr().String()+"/metrics")
	for name, d := range seen {
		if diff := gocmp.Diff(table[name], d, gocmp.AllowUnexported(declared{})); diff != "" {
			t.Errorf("%s is not as it is declared (-declared +gathered):\n%s", name, diff)
		}
	}
	for _, name := range []string{
		"authpool_requests_total", "authpool_attempts_total", "authpool_failovers_total", "authpool_tokens_total", "authpool_cost_usd_total",
		"authpool_subscription_cooldown_seconds", "authpool_subscription_breaker", "authpool_usage_journal_pending", "authpool_usage_journal_bytes",
		"authpool_redis_up", "authpool_redis_failures_total", "authpool_request_seconds", "authpool_first_byte_seconds",
		"authpool_budget_spent_ratio", "authpool_build_info", "authpool_block_requests",
	} {
		if seen[name].name == "" {
			t.Errorf("%s is not gathered", name)
		}
	}
	for _, name := range []string{"authpool_pool_waiting", "authpool_pool_wait_seconds", "authpool_window_utilization", "authpool_window_drift_ratio"} {
		if table[name].name == "" {
			t.Errorf("%s is not declared", name) // they are gathered once there is something to tell
		}
	}
}

// startFailover runs an authpool until the test ends, at which team-a was limited and
// team-b has served the session s1 of the agent default.
func startFailover(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(t.Context(), t.TempDir(), map[string]simulator.Key{
		"team-a": {Key: "sk-sim-a", Provider: simulator.Anthropic, Faults: []simulator.Fault{{Status: http.StatusTooManyRequests, RetryAfter: 600}}},
		"team-b": {Key: "sk-sim-b", Provider: simulator.Anthropic},
	}, `
  - {id: team-a, provider: anthropic, priority: 1, credential: {value: file:team-a.key}, budgets: [{window: day, cost_usd: 5}]}
  - {id: team-b, provider: anthropic, priority: 2, credential: {value: file:team-b.key}}`, 0, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.service.agentAddress()+"/v1/messages",
		strings.NewReader(`{"model":"claude-sonnet-4-5","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("anthropic-version", "2023-06-01")
	req.Header.Set("x-api-key", s.service.dir.AgentToken())
	req.Header.Set("X-Authpool-Session", "s1")
	resp, err := asker.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Authpool-Subscription") != "team-b" {
		t.Fatalf("got %d of %s", resp.StatusCode, resp.Header.Get("X-Authpool-Subscription"))
	}
	if _, err := s.settled(t.Context()); err != nil { // the block, too, is counted
		t.Fatal(err)
	}
	return s
}

var (
	helpLine = regexp.MustCompile(`^# HELP (authpool_\S+) (.*)$`)
	typeLine = regexp.MustCompile(`^# TYPE (authpool_\S+) (\S+)$`)
	sample   = regexp.MustCompile(`^(authpool_[a-z0-9_]+)(?:\{(.*)\})? \S+$`)
	label    = regexp.MustCompile(`([a-z_]+)="(?:[^"\\]|\\.)*"`)
)

// scrape reads our own metrics as Prometheus would.
func scrape(t *testing.T, url string) map[string]declared {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := asker.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	seen := map[string]declared{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Text()
		if m := helpLine.FindStringSubmatch(line); m != nil {
			seen[m[1]] = declared{name: m[1], help: m[2]}
		}
		if m := typeLine.FindStringSubmatch(line); m != nil {
			d := seen[m[1]]
			d.kind = m[2]
			seen[m[1]] = d
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		d, ok := seen[m[1]]
		if !ok { // of a histogram
			d = seen[regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m[1], "")]
		}
		d.labels = nil
		for _, found := range label.FindAllStringSubmatch(m[2], -1) {
			if found[1] != "le" {
				d.labels = append(d.labels, found[1])
			}
		}
		slices.Sort(d.labels)
		seen[d.name] = d
	}
	return seen
}

// declaredMetrics reads every metric off the source, by name: a registry tells only
// those that have a value already.
func declaredMetrics(t *testing.T) []declared {
	t.Helper()
	var all []declared
	for _, folder := range []string{"../../proxy", "../../pool", "../../ratelimit", "../../config", "."} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			r := metricReader{lists: map[string][]string{}}
			ast.Inspect(file, r.read)
			all = append(all, r.found...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b declared) int { return cmp.Compare(a.name, b.name) })
	return all
}

// metricReader finds the metrics of one file.
type metricReader struct {
	lists map[string][]string // the variables that are a list of labels
	found []declared
}

var constructor = regexp.MustCompile(`^New(Counter|Gauge|Histogram|Desc)(?:Vec|Func)?$`)

func (r *metricReader) read(n ast.Node) bool {
	if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 && len(v.Values) == 1 {
		if list, ok := r.list(v.Values[0]); ok {
			r.lists[v.Names[0].Name] = list
		}
	}
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return true
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return true
	}
	kind := constructor.FindStringSubmatch(f.Sel.Name)
	if kind == nil {
		return true
	}
	d := declared{kind: strings.ToLower(kind[1])}
	labels := call.Args[len(call.Args)-1:]
	if d.kind == "desc" {
		d.kind = "gauge"
		d.name, d.help, labels = literal(call.Args[0]), literal(call.Args[1]), call.Args[2:3]
		if strings.HasSuffix(d.name, "_total") {
			d.kind = "counter"
		}
	} else {
		opts, ok := call.Args[0].(*ast.CompositeLit)
		if !ok {
			return true
		}
		for _, e := range opts.Elts {
			switch field := e.(*ast.KeyValueExpr); field.Key.(*ast.Ident).Name {
			case "Name":
				d.name = literal(field.Value)
			case "Help":
				d.help = literal(field.Value)
			case "ConstLabels":
				for _, e := range field.Value.(*ast.CompositeLit).Elts {
					d.labels = append(d.labels, literal(e.(*ast.KeyValueExpr).Key))
				}
			}
		}
	}
	if list, ok := r.list(labels[0]); ok {
		d.labels = append(d.labels, list...)
	}
	slices.Sort(d.labels)
	if strings.HasPrefix(d.name, "authpool_") {
		r.found = append(r.found, d)
	}
	return true
}

// list is the value of a list of strings as it is written here: with what is in it,
// as a variable, as a part of one, or with more appended.
func (r *metricReader) list(e ast.Expr) (list []string, ok bool) {
	switch e := e.(type) {
	case *ast.CompositeLit:
		if _, array := e.Type.(*ast.ArrayType); !array {
			return nil, false
		}
		for _, item := range e.Elts {
			list = append(list, literal(item))
		}
		return list, true
	case *ast.Ident:
		list, ok = r.lists[e.Name]
		return list, ok
	case *ast.SliceExpr:
		return r.list(e.X)
	case *ast.CallExpr:
		if f, is := e.Fun.(*ast.Ident); !is || f.Name != "append" {
			return nil, false
		}
		list, ok = r.list(e.Args[0])
		list = slices.Clone(list)
		for _, item := range e.Args[1:] {
			list = append(list, literal(item))
		}
		return list, ok
	}
	return nil, false
}

// literal is the value of a string as it is written; "" of anything else.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err == nil {
			return text
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}
