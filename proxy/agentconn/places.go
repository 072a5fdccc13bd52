package agentconn

import (
	"net"
	"net/netip"
	"sync"
)

// Places bound how many connections of agents are open at one time. Those on which no
// agent has shown itself yet, the strangers', are the first to go: who opens many and
// says nothing takes no place from an agent. Places are shared by all listeners, and
// safe for concurrent use.
type Places struct {
	most       int // connections in all
	strangers  int // of strangers from one network that is not this machine's
	turnedAway func(why string)

	mu     sync.Mutex
	open   int
	oldest *Conn // of the strangers; each knows the next one
	newest *Conn
	from   map[netip.Prefix]int // strangers
}

// The reasons that are told of a connection that is turned away.
const (
	// Full is that there is no place, and none of a stranger's to be had.
	Full = "full"
	// Crowded is that too many strangers have come from the same network.
	Crowded = "crowded"
	// Evicted is that of a stranger whose place another got.
	Evicted = "evicted"
)

// The share of all places that strangers of one network may have.
const (
	strangersShare = 16 // one of so many
	strangersLeast = 16
)

// NewPlaces returns that many places. turnedAway hears of each connection that is
// closed for want of one; it must not block.
func NewPlaces(most int, turnedAway func(why string)) *Places {
	return &Places{
		most: most, strangers: max(strangersLeast, most/strangersShare), turnedAway: turnedAway,
		from: make(map[netip.Prefix]int),
	}
}

// place is what a Conn has of Places, guarded by Places.mu.
type place struct {
	has          bool // it has one
	stranger     bool
	network      netip.Prefix // of a stranger that is counted by it
	older, newer *Conn
}

// enter gives c a place as a stranger's; false: there is none.
func (p *Places) enter(c *Conn) bool {
	network := networkOf(c.raw.RemoteAddr())
	p.mu.Lock()
	var evicted *Conn
	why := ""
	switch {
	case network.IsValid() && p.from[network] >= p.strangers:
		why = Crowded
	case p.open >= p.most && p.oldest == nil:
		why = Full
	case p.open >= p.most:
		evicted = p.oldest
		p.drop(evicted)
	}
	if why == "" {
		c.place = place{has: true, stranger: true, network: network, older: p.newest}
		if p.newest != nil {
			p.newest.place.newer = c
		} else {
			p.oldest = c
		}
		p.newest = c
		p.open++
		if network.IsValid() {
			p.from[network]++
		}
	}
	p.mu.Unlock()
	switch {
	case evicted != nil:
		evicted.l.watcher.remove(evicted)
		_ = evicted.raw.Close() // whoever serves it sees that and ends it
		p.turnedAway(Evicted)
	case why != "":
		p.turnedAway(why)
		return false
	}
	return true
}

// known makes c a connection whose agent has shown itself.
func (p *Places) known(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(c)
}

// leave gives c's place back.
func (p *Places) leave(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(c)
}

// drop takes c's place away. Its caller holds mu.
func (p *Places) drop(c *Conn) {
	p.forget(c)
	if c.place.has {
		c.place.has = false
		p.open--
	}
}

// forget takes c out of the strangers. Its caller holds mu.
func (p *Places) forget(c *Conn) {
	at := &c.place
	if !at.stranger {
		return
	}
	if at.older != nil {
		at.older.place.newer = at.newer
	} else {
		p.oldest = at.newer
	}
	if at.newer != nil {
		at.newer.place.older = at.older
	} else {
		p.newest = at.older
	}
	if at.network.IsValid() {
		if p.from[at.network]--; p.from[at.network] == 0 {
			delete(p.from, at.network)
		}
	}
	at.stranger, at.older, at.newer = false, nil, nil
}

// networkOf is whom strangers are counted by: an address of IPv4, or the /64 of IPv6
// that one customer has. It is not valid for this machine's own addresses, which all
// agents beside authpool share.
func networkOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !addr.IsValid() || addr.IsLoopback() {
		return netip.Prefix{}
	}
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	network, _ := addr.Prefix(bits) // of so many bits there always is one
	return network
}
