package agentconn

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// remote is a connection from an address.
type remote struct {
	net.Conn
	from   string
	closed bool
	said   string
}

func (r *remote) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(r.from))
}
func (r *remote) SetWriteDeadline(time.Time) error { return nil }
func (r *remote) Write(p []byte) (int, error)      { r.said += string(p); return len(p), nil }
func (r *remote) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *remote) Close() error                     { r.closed = true; return nil }

// Strangers give way, the oldest first; agents do not, and no network's strangers take
// all places.
func TestPlaces(t *testing.T) {
	var away []string
	places := NewPlaces(3, func(why string) { away = append(away, why) })
	l, err := Listen(nil, Options{Head: time.Minute, ReadStall: time.Minute, WriteStall: time.Minute, Places: places})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	open := func(from string) (*Conn, *remote) {
		r := &remote{from: from}
		return l.wrap(r), r
	}
	a, ra := open("127.0.0.1:1")
	b, rb := open("127.0.0.1:2")
	c, rc := open("127.0.0.1:3")
	if !a.Known() || a.Known() {
		t.Error("an agent is known once")
	}
	d, rd := open("127.0.0.1:4")
	if d == nil || ra.closed || !rb.closed || rc.closed || !slices.Equal(away, []string{Evicted}) {
		t.Errorf("%v %v %v: %v", ra.closed, rb.closed, rc.closed, away)
	}
	_ = b.Close() // frees nothing more
	c.Known()
	d.Known()
	e, re := open("127.0.0.1:5")
	if e != nil || !re.closed || rd.closed || !strings.HasPrefix(re.said, "HTTP/1.1 503 ") || away[1] != Full {
		t.Errorf("there was a place: %q, %v", re.said, away)
	}
	closed := 0
	c.OnClose(func() { closed++ })
	_ = c.Close()
	_ = c.Close()
	c.OnClose(func() { closed++ })
	if closed != 2 {
		t.Errorf("the end was told %d times", closed)
	}
	if e, _ = open("127.0.0.1:6"); e == nil {
		t.Error("a place that was given back is gone")
	}

	for _, c := range []*Conn{a, d, e} {
		_ = c.Close()
	}
	away = nil
	places = NewPlaces(1000, func(why string) { away = append(away, why) })
	l.opts.Places = places
	got := map[string]int{}
	for range 2 * (1000 / strangersShare) {
		for _, from := range []string{"192.0.2.1:1", "[2001:db8::1]:1", "[2001:db8:0:1::1]:1", "127.0.0.1:1"} {
			if c, _ := open(from); c != nil {
				got[from]++
			}
		}
	}
	if most := 1000 / strangersShare; got["192.0.2.1:1"] != most || got["[2001:db8::1]:1"] != most || got["[2001:db8:0:1::1]:1"] != most || got["127.0.0.1:1"] != 2*most || away[0] != Crowded {
		t.Errorf("%v", got)
	}
	l.CloseConns()
	if places.open != 0 || len(places.from) != 0 || places.oldest != nil || places.newest != nil {
		t.Errorf("%d are left, %v", places.open, places.from)
	}
}
