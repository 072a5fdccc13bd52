package tunnel_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/proxy/tunnel"
)

// metric is the sum of what the process has counted under a name and label value.
func metric(t *testing.T, name, label string) (sum float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if label == "" || hasLabel(m, label) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func hasLabel(m *dto.Metric, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// Each tunnel's end is a line of the audit log, and each kind of refusal of an agent's,
// once a minute with how many there were.
func TestAudit(t *testing.T) {
	dir := t.TempDir()
	log, err := audit.Open(audit.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	upper, host := pair(t)
	lower, agent := pair(t)
	all := newTunnels(t, tunnel.Policy{Hosts: []string{"files.example", "inner.example"}}, func(o *tunnel.Options) {
		o.Audit = log
		o.Lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(map[string]string{"files.example": "93.184.216.34", "inner.example": "10.0.0.1"}[name])}, nil
		}
		o.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) { return upper, nil }
	})
	names := []string{"authpool_tunnels", "authpool_tunnels_ended_total", "authpool_tunnel_seconds", "authpool_tunnel_bytes_total", "authpool_tunnels_refused_total"}
	before := map[string]float64{}
	for _, name := range names {
		before[name] = metric(t, name, "")
	}
	one, err := all.Open(t.Context(), "agent-a", "Files.Example.", 443)
	if err != nil {
		t.Fatal(err)
	}
	if n := metric(t, "authpool_tunnels", "") - before["authpool_tunnels"]; n != 1 {
		t.Errorf("%v tunnels are open", n)
	}
	_, _ = io.WriteString(agent, "12345")
	_ = agent.Close()
	_, _ = io.WriteString(host, "1234567")
	_ = host.Close()
	one.Relay(t.Context(), lower, nil)
	for range 3 {
		_ = open(t, all, "evil.example", 443)
		_ = open(t, all, "inner.example", 443)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := audit.List(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, files[0]))
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]string
	for raw := range bytes.Lines(text) {
		line, err := audit.ParseLine(raw)
		if err != nil {
			t.Fatal(err)
		}
		if line.Kind != audit.TunnelEnded && line.Kind != audit.RequestRefused {
			continue
		}
		delete(line.Fields, "took")
		line.Fields["kind of line"], line.Fields["actor"] = string(line.Kind), line.Actor
		if line.Fields["count"] != "2" { // the rest of a window comes in no order
			got = append(got, line.Fields)
		}
	}
	want := []map[string]string{
		{"kind of line": "tunnel.ended", "actor": "agent-a", "target": "files.example:443", "address": "127.0.0.1", "kind": "private", "up": "5", "down": "7", "end": "done"},
		{"kind of line": "request.refused", "actor": "agent-a", "code": "tunnel_not_listed", "count": "1", "target": "evil.example:443"},
		{"kind of line": "request.refused", "actor": "agent-a", "code": "tunnel_bad_address", "count": "1", "target": "inner.example:443"},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for i, want := range []float64{0, 1, 1, 12, 6} {
		if got := metric(t, names[i], "") - before[names[i]]; got != want {
			t.Errorf("%s has grown by %v, want %v", names[i], got, want)
		}
	}
}
