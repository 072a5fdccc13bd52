package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// MasterName is the name under which the sentinels of this package know their
// master.
const MasterName = "main"

// Sentinels are a master, its replica and a sentinel that watches them, of one test.
type Sentinels struct {
	// Master and Replica are what they were at first.
	Master, Replica *Server
	Sentinel        *Server

	t testing.TB
}

// NewSentinels starts all three on free ports of 127.0.0.1 and waits until the
// sentinel knows the others. They end with the test. Without redis-server on PATH
// the test is skipped, or fails when RequireEnv is set.
func NewSentinels(t testing.TB) *Sentinels {
	t.Helper()
	s := &Sentinels{t: t, Master: newServer(t, "--repl-diskless-sync-delay", "0")}
	host, port, _ := net.SplitHostPort(s.Master.addr)
	s.Replica = newServer(t, "--replicaof", host, port, "--repl-diskless-sync-delay", "0")
	until(t, "the replica is in step", func() bool { return s.Replica.info("replication", "master_link_status") == "up" })

	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	// It fails over when told to, not because this machine is slow.
	text := fmt.Sprintf("sentinel monitor %s %s %s 1\nsentinel down-after-milliseconds %[1]s 60000\n", MasterName, host, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Sentinel = newServer(t, conf, "--sentinel")
	until(t, "the sentinel knows the replica", func() bool {
		replicas, _ := s.Sentinel.client.Do(context.Background(), "SENTINEL", "REPLICAS", MasterName).Slice()
		return len(replicas) == 1
	})
	return s
}

// URL returns a redis:// URL of the sentinel and its master.
func (s *Sentinels) URL() string { return s.Sentinel.URL() + "?master=" + MasterName }

// FailOver has the sentinel make the replica the master, whether the old master
// answers or not, and returns when the sentinel says so to everybody. What the
// replica has not received yet is lost.
func (s *Sentinels) FailOver() {
	s.t.Helper()
	ctx := context.Background()
	until(s.t, "the sentinel fails over", func() bool {
		return s.Sentinel.client.Do(ctx, "SENTINEL", "FAILOVER", MasterName).Err() == nil
	})
	_, port, _ := net.SplitHostPort(s.Replica.addr)
	until(s.t, "the replica is the master", func() bool {
		at, _ := s.Sentinel.client.Do(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MasterName).StringSlice()
		return len(at) == 2 && at[1] == port
	})
}
