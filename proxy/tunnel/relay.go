package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/pool/reach"
)

// Tunnel is a connection to a host, made for an agent.
type Tunnel struct {
	of    *Tunnels
	rules *Rules
	agent string
	host  reach.Host
	port  uint16
	way   string
	upper net.Conn // to the host
	began time.Time

	up, down counted
	last     atomic.Int64 // when something moved last, in nanoseconds since began
	halves   atomic.Int32 // directions that have come to their end
	draining atomic.Bool

	may func() bool // set by Relay

	mu    sync.Mutex
	lower net.Conn    // to the agent; nil before Relay
	timer *time.Timer // ends it by a limit
	ended End         // "": it has not
	gone  bool        // its slot is given back
}

// Stats is what became of a tunnel.
type Stats struct {
	Up, Down int64 // bytes from the agent, and to it
	Took     time.Duration
	End      End
}

// End is why a tunnel ended, from a closed list.
type End string

// The ends.
const (
	Done      End = "done"      // both sides have sent all
	Broken    End = "broken"    // a connection failed
	IdleLimit End = "idle"      // nothing moved
	TotalTime End = "total"     // it was old
	Stopped   End = "stopped"   // ctx ended, or authpool stopped
	Forbidden End = "forbidden" // see BadHello
	Revoked   End = "revoked"   // the agent may no longer have it
)

// recheck is how long an agent that has lost its rights keeps a tunnel at most.
const recheck = 5 * time.Second

// quiet is how long nothing has moved on a tunnel that is ended at once when authpool
// stops: connections that clients keep for later.
const quiet = time.Second

// begin makes the Tunnel of a connection.
func (t *Tunnels) begin(r *Rules, agent string, h reach.Host, port uint16, conn net.Conn, way string) *Tunnel {
	one := &Tunnel{
		of: t, rules: r, agent: agent, host: h, port: port, way: way, upper: conn, began: time.Now(),
		up: counted{all: tunnelBytes.WithLabelValues(way, "up")}, down: counted{all: tunnelBytes.WithLabelValues(way, "down")},
	}
	tunnelsOpen.WithLabelValues(way).Inc()
	t.mu.Lock()
	t.open[one] = struct{}{}
	if t.stopping {
		one.draining.Store(true)
	}
	t.mu.Unlock()
	return one
}

// counted is the bytes of one direction.
type counted struct {
	one atomic.Int64
	all prometheus.Counter // of all tunnels
}

func (c *counted) add(n int) {
	c.one.Add(int64(n))
	c.all.Add(float64(n))
}

// closeWriter is what passes the end of a direction on: *net.TCPConn and *tls.Conn are
// such.
type closeWriter interface{ CloseWrite() error }

// Relay copies between the agent and the host until both have ended, a limit is met,
// ctx ends or Close is called on Tunnels, and closes both. A side that ends its sending
// has that passed on, where the other connection has CloseWrite; where it has not,
// that ends the tunnel.
//
// The first Read of agent must give what the agent has sent behind its CONNECT, and
// agent must have no deadlines of its own. may is asked every few seconds whether the
// agent may still have the tunnel, and must not wait; nil: it may.
func (t *Tunnel) Relay(ctx context.Context, agent net.Conn, may func() bool) Stats {
	t.may = may
	t.mu.Lock()
	t.lower = agent
	if t.ended != "" { // meanwhile
		_ = agent.Close()
	}
	t.timer = time.AfterFunc(0, t.look)
	t.mu.Unlock()
	defer context.AfterFunc(ctx, func() { t.end(Stopped) })()
	defer context.AfterFunc(t.of.cut, func() { t.end(Stopped) })()
	var both sync.WaitGroup
	both.Go(func() { t.copy(agent, t.upper, &t.down, nil) })
	t.copy(t.upper, agent, &t.up, t.check)
	both.Wait()
	t.end(Done)
	return t.finish()
}

// Close gives up a Tunnel that was not relayed. After Relay it does nothing.
func (t *Tunnel) Close() {
	t.end(Broken)
	t.finish()
}

// end ends the tunnel, by closing both connections; of several reasons the first
// counts.
func (t *Tunnel) end(why End) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != "" {
		return
	}
	t.ended = why
	if t.timer != nil {
		t.timer.Stop()
	}
	_ = t.upper.Close()
	if t.lower != nil {
		_ = t.lower.Close()
	}
}

// finish gives the slot back and tells what became of the tunnel, once.
func (t *Tunnel) finish() Stats {
	t.mu.Lock()
	s := Stats{Up: t.up.one.Load(), Down: t.down.one.Load(), Took: time.Since(t.began), End: t.ended}
	first := !t.gone
	t.gone = true
	t.mu.Unlock()
	if first {
		t.of.mu.Lock()
		delete(t.of.open, t)
		t.of.mu.Unlock()
		t.note(s)
		t.of.give(t.agent)
	}
	return s
}

// wait is for how long no limit can be met.
func (t *Tunnel) wait() time.Duration {
	idle := t.rules.idle
	if t.draining.Load() {
		idle = min(idle, quiet)
	}
	age := time.Since(t.began)
	return min(time.Duration(t.last.Load())+idle-age, t.rules.total-age)
}

// look ends the tunnel when a limit is met, else it looks again when one can be.
// Progress moves no timer, so that it costs nothing.
func (t *Tunnel) look() {
	wait := t.wait()
	switch {
	case t.may != nil && !t.may():
		t.end(Revoked)
	case wait > 0:
		if t.may != nil {
			wait = min(wait, recheck)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.ended == "" {
			t.timer.Reset(wait)
		}
	case time.Since(t.began) >= t.rules.total:
		t.end(TotalTime)
	case t.draining.Load():
		t.end(Stopped)
	default:
		t.end(IdleLimit)
	}
}

// drain ends the tunnel as soon as it is quiet.
func (t *Tunnel) drain() {
	t.draining.Store(true)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil && t.ended == "" {
		t.timer.Reset(0)
	}
}

// buffers are of one direction each. Copying by them is no slower than splice(2)
// between two sockets (BenchmarkRelay: 1.2 and 1.0 GB/s over loopback), and unlike it
// shows every progress and holds no pipe while nothing moves.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copy copies one direction to its end. first, if there is one, looks at the first
// bytes and gives those that are to be written for them.
func (t *Tunnel) copy(dst, src net.Conn, count *counted, first func([]byte, io.Reader) ([]byte, error)) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	from := moving{t, src}
	for {
		n, err := from.Read(buffer[:])
		b := buffer[:n]
		if first != nil && n > 0 {
			var bad error
			if b, bad = first(b, from); bad != nil {
				return // and it has ended
			}
			first = nil
		}
		if len(b) > 0 {
			wrote, bad := dst.Write(b)
			count.add(wrote)
			t.moved()
			if bad != nil {
				t.fail()
				return
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			t.fail()
			return
		}
		t.halves.Add(1)
		if half, ok := dst.(closeWriter); ok {
			_ = half.CloseWrite() // who has gone meanwhile is seen by the other direction
		} else {
			t.end(Done)
		}
		return
	}
}

// fail ends the tunnel because a connection failed. A client that has been told of the
// server's end often does not read what it is still sent.
func (t *Tunnel) fail() {
	if t.halves.Load() > 0 {
		t.end(Done)
	} else {
		t.end(Broken)
	}
}

func (t *Tunnel) moved() { t.last.Store(int64(time.Since(t.began))) }

// moving is a connection of which every read is progress.
type moving struct {
	t *Tunnel
	c net.Conn
}

// Read implements io.Reader.
func (m moving) Read(p []byte) (int, error) {
	n, err := m.c.Read(p)
	if n > 0 {
		m.t.moved()
	}
	return n, err
}

var errForbidden = errors.New("the server name is not permitted")

// check looks at the first bytes of the agent: where they are TLS, the server name in
// them must be one that CONNECT could have named, so that an open door to one host of
// a content network is none to all of them, and none to a provider.
func (t *Tunnel) check(first []byte, r io.Reader) ([]byte, error) {
	if first[0] != recordHandshake {
		return first, nil
	}
	name, all, ok := serverName(first, r)
	if ok && t.mayName(name) {
		return all, nil
	}
	t.of.noteHello(t, name)
	if t.down.one.Load() == 0 { // a server that speaks TLS has nothing to say before
		t.mu.Lock()
		lower := t.lower
		t.mu.Unlock()
		_ = lower.SetWriteDeadline(time.Now().Add(quiet))
		_, _ = lower.Write(denied)
	}
	t.end(Forbidden)
	return nil, errForbidden
}

// mayName tells whether a server name may stand inside this tunnel. Who was let
// connect to an address may say any name there but a provider's.
func (t *Tunnel) mayName(name string) bool {
	if name == "" || name == t.host.Name {
		return true
	}
	h, err := reach.ParseHost(name)
	if err == nil && t.host.Name == "" {
		return !t.rules.isProvider(h, t.port)
	}
	_, err = t.rules.permit(name, t.port)
	return err == nil
}
