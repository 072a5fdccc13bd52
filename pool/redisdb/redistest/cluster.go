package redistest

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// shards is how many masters a cluster of this package has, and slots how many
// slots they share.
const (
	shards = 3
	slots  = 16384
)

// nodeArgs make a redis-server a node of a cluster. A node that is away takes only
// its own slots with it, and no replica takes over by itself: a test says when.
var nodeArgs = []string{
	"--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-require-full-coverage", "no",
	"--cluster-replica-no-failover", "yes", "--repl-diskless-sync-delay", "0", "--cluster-allow-replica-migration", "no",
}

// Cluster is a Redis Cluster of one test: three masters, with a replica each if
// asked for. Its methods are for the test's own goroutine, but Client's result for
// any. Every node may be stopped, started, paused and resumed.
type Cluster struct {
	// Nodes are the masters at first, then the replicas: i+3 is that of i.
	Nodes []*Server

	t      testing.TB
	client redis.UniversalClient
}

// NewCluster starts a cluster on free ports of 127.0.0.1 and waits until all of its
// nodes agree about it. It ends with the test. Without redis-server on PATH the
// test is skipped, or fails when RequireEnv is set. It takes about two seconds,
// which a node waits by itself before it takes writes.
func NewCluster(t testing.TB, replicas bool) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for range shards {
		c.Nodes = append(c.Nodes, newServer(t, nodeArgs...))
	}
	for i, node := range c.Nodes {
		join(t, node.client, i, c.Nodes[0].addr)
	}
	c.agree()
	if replicas {
		for _, master := range slices.Clone(c.Nodes) {
			c.follow(master)
		}
	}
	c.client = clusterClient(t, c.Addrs())
	return c
}

// join gives the node with this index its slots and makes it known to the node at
// first.
func join(t testing.TB, node redis.UniversalClient, index int, first string) {
	t.Helper()
	ctx := context.Background()
	host, port, err := net.SplitHostPort(first)
	if err == nil {
		err = node.ClusterAddSlotsRange(ctx, index*slots/shards, (index+1)*slots/shards-1).Err()
	}
	if err == nil {
		// As redis-cli does it: of two masters of the same epoch the third does not
		// know which to believe about a slot that has moved.
		err = node.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", index+1).Err()
	}
	if err == nil && index > 0 {
		err = node.ClusterMeet(ctx, host, port).Err()
	}
	if err != nil {
		t.Fatalf("cannot make a node of a cluster: %v", err)
	}
}

// joined tells whether a node sees all masters and takes writes.
func joined(node redis.Cmdable) bool {
	ctx := context.Background()
	info, err := node.ClusterInfo(ctx).Result()
	if err != nil || !strings.HasPrefix(info, "cluster_state:ok") {
		return false
	}
	ranges, err := node.ClusterSlots(ctx).Result()
	return err == nil && len(ranges) >= shards
}

// agree waits until every node that answers sees the whole cluster.
func (c *Cluster) agree() {
	c.t.Helper()
	for _, node := range c.Nodes {
		until(c.t, "the cluster is joined", func() bool { return !node.answers() || joined(node.client) })
	}
}

// follow starts a replica of master and waits until it holds what the master does
// and all know it.
func (c *Cluster) follow(master *Server) {
	c.t.Helper()
	ctx := context.Background()
	id := c.id(master)
	replica := newServer(c.t, nodeArgs...)
	host, port, _ := net.SplitHostPort(master.addr)
	if err := replica.client.ClusterMeet(ctx, host, port).Err(); err != nil {
		c.t.Fatalf("cannot add a replica: %v", err)
	}
	until(c.t, "the replica knows its master", func() bool { return replica.client.ClusterReplicate(ctx, id).Err() == nil })
	until(c.t, "the replica is in step", func() bool { return replica.info("replication", "master_link_status") == "up" })
	c.Nodes = append(c.Nodes, replica)
	own := c.id(replica)
	for _, node := range c.Nodes {
		until(c.t, "all know the replica", func() bool {
			known, _ := node.client.ClusterNodes(ctx).Result()
			_, known, _ = strings.Cut(known, own)
			known, _, _ = strings.Cut(known, "\n")
			return strings.Contains(known, id)
		})
	}
}

// id returns the id by which the cluster knows a node.
func (c *Cluster) id(node *Server) string {
	c.t.Helper()
	id, err := node.client.Do(context.Background(), "CLUSTER", "MYID").Text()
	if err != nil {
		c.t.Fatalf("cannot ask a node for its id: %v", err)
	}
	return id
}

// Addrs returns host:port of every node.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, node := range c.Nodes {
		addrs[i] = node.addr
	}
	return addrs
}

// URL returns a redis:// URL with every node.
func (c *Cluster) URL() string { return "redis://" + strings.Join(c.Addrs(), ",") }

// Client returns the cluster's one client. FLUSHALL, KEYS and their like reach all
// masters.
func (c *Cluster) Client() redis.UniversalClient { return c.client }

// Owner returns the node that serves key in the eyes of those that answer.
func (c *Cluster) Owner(key string) *Server {
	c.t.Helper()
	return c.owner(c.slot(key))
}

func (c *Cluster) slot(key string) int {
	c.t.Helper()
	slot, err := c.witness().client.ClusterKeySlot(context.Background(), key).Result()
	if err != nil {
		c.t.Fatalf("cannot ask for the slot of a key: %v", err)
	}
	return int(slot)
}

func (c *Cluster) owner(slot int) *Server {
	c.t.Helper()
	addr := ownerAddr(c.witness(), slot)
	i := slices.IndexFunc(c.Nodes, func(s *Server) bool { return s.addr == addr })
	if i < 0 {
		c.t.Fatalf("slot %d is with %q, which is no node of this cluster", slot, addr)
	}
	return c.Nodes[i]
}

// ownerAddr returns where the master of slot is in the eyes of one node.
func ownerAddr(node *Server, slot int) string {
	ranges, _ := node.client.ClusterSlots(context.Background()).Result()
	for _, r := range ranges {
		if r.Start <= slot && slot <= r.End {
			return r.Nodes[0].Addr
		}
	}
	return ""
}

// witness returns a node that can be asked.
func (c *Cluster) witness() *Server {
	c.t.Helper()
	i := slices.IndexFunc(c.Nodes, (*Server).answers)
	if i < 0 {
		c.t.Fatal("no node of the cluster answers")
	}
	return c.Nodes[i]
}

// FailOver has the replica of node i take its slots over without asking anybody,
// and returns it when all nodes that answer know. What the replica has not received
// yet is lost. When the former master answers again it becomes the replica.
func (c *Cluster) FailOver(i int) *Server {
	c.t.Helper()
	replica := c.Nodes[i+shards]
	slot := i * slots / shards
	if err := replica.client.Do(context.Background(), "CLUSTER", "FAILOVER", "TAKEOVER").Err(); err != nil {
		c.t.Fatalf("cannot fail over: %v", err)
	}
	for _, node := range c.Nodes {
		until(c.t, "all know the new master", func() bool { return !node.answers() || ownerAddr(node, slot) == replica.addr })
	}
	return replica
}

// Move moves the slot of key to another master, key by key as redis-cli does, and
// calls meanwhile before the first and after each.
func (c *Cluster) Move(key string, to *Server, meanwhile func(moved int)) {
	c.t.Helper()
	ctx := context.Background()
	slot := c.slot(key)
	from := c.owner(slot)
	host, port, _ := net.SplitHostPort(to.addr)
	must := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatalf("cannot move slot %d: %v", slot, err)
		}
	}
	setSlot := func(node *Server, state string, other *Server) {
		c.t.Helper()
		must(node.client.Do(ctx, "CLUSTER", "SETSLOT", slot, state, c.id(other)).Err())
	}
	setSlot(to, "IMPORTING", from)
	setSlot(from, "MIGRATING", to)
	for moved := 0; ; moved++ {
		meanwhile(moved)
		keys, err := from.client.ClusterGetKeysInSlot(ctx, slot, 1).Result()
		must(err)
		if len(keys) == 0 {
			break
		}
		must(from.client.Migrate(ctx, host, port, keys[0], 0, 0).Err())
	}
	setSlot(to, "NODE", to)
	setSlot(from, "NODE", to)
	for _, node := range c.Nodes {
		until(c.t, "all know where the slot is", func() bool { return !node.answers() || ownerAddr(node, slot) == to.addr })
	}
}

// clusterClient returns a test's client of a cluster.
func clusterClient(t testing.TB, addrs []string) redis.UniversalClient {
	opts := options(addrs...)
	opts.IsClusterMode = true
	client := newClient(t, opts).(*redis.ClusterClient)
	client.AddHook(everywhere{client})
	return client
}

// everywhere sends to all masters what tests do to a whole database, and the library
// to one node.
type everywhere struct{ client *redis.ClusterClient }

// ProcessHook implements redis.Hook.
func (e everywhere) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		switch cmd := cmd.(type) {
		case *redis.StringSliceCmd:
			if cmd.Name() != "keys" {
				break
			}
			var mu sync.Mutex
			var all []string
			err := e.client.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
				keys, err := node.Keys(ctx, cmd.Args()[1].(string)).Result()
				mu.Lock()
				defer mu.Unlock()
				all = append(all, keys...)
				return err
			})
			cmd.SetVal(all)
			return err
		case *redis.StatusCmd:
			if cmd.Name() != "flushall" {
				break
			}
			return e.client.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return node.FlushAll(ctx).Err() })
		}
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook.
func (everywhere) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// DialHook implements redis.Hook.
func (everywhere) DialHook(next redis.DialHook) redis.DialHook { return next }
