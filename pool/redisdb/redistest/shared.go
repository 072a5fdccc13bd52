package redistest

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// shared is the cluster of all subtests of Each in this test binary: a cluster takes
// two seconds to start, which no test wants to wait for anew. It is held by the
// subtest that uses it.
var shared struct {
	sync.Mutex
	addrs []string
	// alive is never written to: it ends when this process does, however that
	// happens, and the cluster with it.
	alive *os.File
}

// keeper starts the nodes, waits until its standard input ends, ends them and
// removes their folder. Its arguments are redis-server, the folder and the ports.
const keeper = `
trap '' INT TERM HUP
server=$1 dir=$2; shift 2
for port; do
	mkdir "$dir/$port"
	"$server" --bind 127.0.0.1 --port "$port" --dir "$dir/$port" --save '' --appendonly no --cluster-enabled yes &
	nodes="$nodes $!"
done
read -r _
kill -9 $nodes
wait
rm -rf "$dir"`

// sharedCluster returns a client of the shared cluster, emptied, which is the test's
// until it ends.
func sharedCluster(t testing.TB) redis.UniversalClient {
	t.Helper()
	shared.Lock()
	t.Cleanup(shared.Unlock)
	if shared.addrs == nil {
		startShared(t)
	}
	client := clusterClient(t, shared.addrs)
	ctx := context.Background()
	for _, err := range []error{client.FlushAll(ctx).Err(), client.ScriptFlush(ctx).Err()} {
		if err != nil {
			t.Fatalf("cannot empty the shared cluster: %v", err)
		}
	}
	return client
}

// startShared starts the shared cluster. No goroutine is left that looks after it:
// the test binary may count those.
func startShared(t testing.TB) {
	t.Helper()
	path := binary(t)
	var err error
	for range startAttempts {
		var addrs []string
		if addrs, err = tryShared(t, path); err == nil {
			shared.addrs = addrs
			return
		}
	}
	t.Fatalf("cannot start the shared cluster: %v", err)
}

func tryShared(t testing.TB, path string) (addrs []string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "redistest") //nolint:usetesting // it outlives this test
	if err != nil {
		return nil, err
	}
	args := []string{"-c", keeper, "redistest", path, dir}
	for range shards {
		addr := freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		addrs, args = append(addrs, addr), append(args, port)
	}
	in, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()                        //nolint:errcheck // the keeper has its own
	cmd := exec.Command("/bin/sh", args...) //nolint:gosec // the script above
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := joinShared(t, dir, addrs); err != nil {
		return nil, errors.Join(err, alive.Close())
	}
	shared.alive = alive
	return addrs, nil
}

// joinShared makes a cluster of the nodes as soon as they answer. One that does not
// has lost its port to somebody else, who may even answer in its place.
func joinShared(t testing.TB, dir string, addrs []string) error {
	t.Helper()
	nodes := make([]*redis.Client, len(addrs))
	for i, addr := range addrs {
		nodes[i] = redis.NewClient(options(addr).Simple())
	}
	defer func() {
		for _, node := range nodes {
			_ = node.Close() // of no interest
		}
	}()
	for i, node := range nodes {
		_, port, _ := net.SplitHostPort(addrs[i])
		if err := isAt(node, filepath.Join(dir, port)); err != nil {
			return err
		}
		join(t, node, i, addrs[0])
	}
	for _, node := range nodes {
		until(t, "the shared cluster is joined", func() bool { return joined(node) })
	}
	return nil
}

// isAt waits until a server answers and returns an error if its folder is another.
func isAt(node *redis.Client, dir string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(10 * time.Second)
	defer end.Stop()
	for {
		// The library would write a line to standard error for each failed dial.
		conn, err := net.Dial("tcp", node.Options().Addr)
		if err == nil {
			_ = conn.Close()
			at, err := node.ConfigGet(context.Background(), "dir").Result()
			if err == nil && at["dir"] != dir {
				err = errors.New("another server has its port")
			}
			return err
		}
		select {
		case <-tick.C:
		case <-end.C:
			return errors.New("it does not answer")
		}
	}
}
