package redisdb

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
)

// node runs redis-server with args on a free port until the test ends, and
// returns its address and a client of it.
func node(t *testing.T, args ...string) (string, *redis.Client) {
	t.Helper()
	port := freePort(t)
	addr := net.JoinHostPort("127.0.0.1", port)
	args = append(args, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "")
	cmd := exec.Command("redis-server", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true})
	t.Cleanup(func() { _ = client.Close() })
	until(t, "the node answers", func() bool { return client.Ping(t.Context()).Err() == nil })
	return addr, client
}

// freePort finds a port whose cluster bus port, 10,000 above, exists too.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close()
		if addr := listener.Addr().(*net.TCPAddr); addr.Port < 55_000 {
			return fmt.Sprint(addr.Port)
		}
	}
	t.Fatal("no free port below 55000")
	return ""
}

// until waits for another process.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		if !pause(ctx, 20*time.Millisecond) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestCluster(t *testing.T) {
	redistest.NewServer(t) // skips, or fails, without redis-server
	ctx := t.Context()
	var addrs []string
	var nodes []*redis.Client
	for range 3 {
		addr, client := node(t, "--cluster-enabled", "yes")
		addrs, nodes = append(addrs, addr), append(nodes, client)
	}
	for i, client := range nodes {
		if err := client.ClusterAddSlotsRange(ctx, i*16384/3, (i+1)*16384/3-1).Err(); err != nil {
			t.Fatal(err)
		}
		host, port, _ := net.SplitHostPort(addrs[0])
		if err := client.ClusterMeet(ctx, host, port).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, client := range nodes {
		until(t, "the cluster is joined", func() bool {
			shards, _ := client.ClusterShards(ctx).Result()
			info, _ := client.ClusterInfo(ctx).Result()
			return len(shards) == 3 && len(info) > 16 && info[:16] == "cluster_state:ok"
		})
	}

	db := open(t, Options{Addresses: addrs})
	if !db.Healthy() || db.Mode() != "cluster" {
		t.Fatalf("healthy %t, mode %s", db.Healthy(), db.Mode())
	}
	script := redis.NewScript(`redis.call('HINCRBY', KEYS[1], 'n', 1) return redis.call('HINCRBY', KEYS[2], 'n', 2)`)
	for i := range 30 {
		tag := fmt.Sprintf("authpool:{sub-%d}:", i)
		n, err := script.Run(ctx, db.Client(), []string{tag + "now", tag + "writers"}).Int()
		if n != 2 || err != nil {
			t.Fatalf("%s: %d, %v", tag, n, err)
		}
	}
	spread := 0
	for _, client := range nodes {
		if n := client.DBSize(ctx).Val(); n > 0 {
			spread++
		}
	}
	if spread != 3 {
		t.Errorf("the keys lie on %d of 3 nodes", spread)
	}
	if err := script.Run(ctx, db.Client(), []string{"authpool:{a}:now", "authpool:{b}:now"}).Err(); err == nil {
		t.Error("a script over two slots was taken")
	}
	if !db.Healthy() {
		t.Error("an answer about one command made the cluster unhealthy")
	}
}

func TestSentinel(t *testing.T) {
	server := redistest.NewServer(t)
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor main %s %s 1\n", host, port), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, _ := node(t, conf, "--sentinel")
	db := open(t, Options{Mode: Sentinel, Addresses: []string{addr}, Master: "main"})
	if !db.Healthy() || db.Mode() != "sentinel" {
		t.Fatalf("healthy %t, mode %s", db.Healthy(), db.Mode())
	}
	if err := db.Client().Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if v, err := server.Client().Get(t.Context(), "k").Result(); v != "v" || err != nil {
		t.Errorf("the master has %q, %v", v, err)
	}
}
