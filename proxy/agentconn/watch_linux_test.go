package agentconn

import (
	"net"
	"testing"
)

// The number of a closed connection's descriptor is the next connection's; an
// event of the old one that is still under way must not end the new one.
func TestEventsOfAClosedConnection(t *testing.T) {
	_, first := pair(t)
	old := first.watch
	l := first.l
	_ = first.Close()
	agent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := From(nc)
	if second.watch.id == old.id || l.watcher.conns[old.id] != nil {
		t.Errorf("event %d would be told to another connection", old.id)
	}
	for _, id := range []uint64{1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 + 5} {
		if got := idOf(eventOf(0, id)); got != id {
			t.Errorf("event %d came back as %d", id, got)
		}
	}
}
