package proxy

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/provider"
)

// AnonymousAgent is the agent of every request when no token is asked for.
const AnonymousAgent = "anonymous"

// Agents knows which agent a token belongs to, and what that may use. It keeps hashes
// only, and is safe for concurrent use.
type Agents struct {
	open    bool
	tokens  []agentToken
	book    *agents.Book
	users   map[uint32]string // agents by user, on unix sockets
	guesses guesses
}

type agentToken struct {
	hash  [sha256.Size]byte
	agent string
}

// NoAgents asks for no token: everyone is AnonymousAgent.
func NoAgents() *Agents { return &Agents{open: true} }

// NewAgents takes tokens by agent id, beside those of the book. A token is 256 bit
// random, so that its plain hash can't be guessed back.
func NewAgents(tokens map[string]string) *Agents {
	a := &Agents{}
	for agent, token := range tokens {
		a.tokens = append(a.tokens, agentToken{sha256.Sum256([]byte(token)), agent})
	}
	return a
}

// Of has a know the agents of a book, too, and the limits in it of those that a knows
// by itself. It returns a.
func (a *Agents) Of(book *agents.Book) *Agents {
	a.book = book
	return a
}

// Users has a know agents by the user of their process, which is told of those at unix
// sockets. It returns a.
func (a *Agents) Users(agents map[uint32]string) *Agents {
	a.users = agents
	return a
}

// at returns the agent whose process is at the other end of a connection; empty: that is
// nobody's who is known by it.
func (a *Agents) at(conn *agentconn.Conn) string {
	if len(a.users) == 0 || conn == nil {
		return ""
	}
	uid, ok := conn.Peer()
	if !ok {
		return ""
	}
	return a.users[uid]
}

// Errors of identify.
var (
	errNoToken   = errors.New("no agent token")
	errBadToken  = errors.New("agent token not known")
	errTwoAgents = errors.New("tokens of two agents")
	errExpired   = errors.New("this agent token has expired")
	errUnknowing = errors.New("the agents are not known yet, because Redis is away")
)

// identity is whose a request is.
type identity struct {
	agent string
	entry *agents.Entry // nil: the agent has no limits
	// session is what stands behind the token and a dot (apa_….my-task), by which an agent
	// names its session that can send nothing but a key; empty: nothing does.
	session string
}

// identify returns the agent to whom the valid ones among the tokens of a request
// belong. What is no agent's token (an agent's own dummy key, for instance) is passed
// over as long as one is valid. shown is one that came before the request, when the
// connection was opened; empty: none did.
func (a *Agents) identify(headers provider.Headers, query, shown []byte, peer string) (identity, error) {
	var c asserted
	if peer != "" && !a.open {
		who := a.known(peer)
		if c.expired = who.entry != nil && who.entry.Expired(time.Now()); !c.expired {
			c.is(who, nil)
		}
	}
	a.look(&c, shown)
	for token := range provider.AgentTokens(headers, query) {
		a.look(&c, token)
	}
	return a.judge(&c)
}

// token returns the one token among those of a head and a query that is an agent's of ours; nil
// when there is none, as where no token is asked for.
func (a *Agents) token(headers provider.Headers, query []byte) []byte {
	for token := range provider.AgentTokens(headers, query) {
		var c asserted
		if a.look(&c, token); c.agent != "" {
			return bytes.Clone(token)
		}
	}
	return nil
}

// holdsToken tells whether headers or a query hold a token of some agent of ours.
func (a *Agents) holdsToken(headers provider.Headers, query []byte) bool {
	var c asserted
	for token := range provider.AgentTokens(headers, query) {
		a.look(&c, token)
	}
	return c.agent != "" || c.expired
}

// asserted is what the tokens of one request say.
type asserted struct {
	identity
	seen, two, expired bool
}

// look takes one token in.
func (a *Agents) look(c *asserted, token []byte) {
	token, session, _ := bytes.Cut(token, []byte{'.'})
	if a.open && string(token) == AnonymousAgent {
		c.session = string(session)
	}
	if a.open || len(token) == 0 {
		return
	}
	c.seen = true
	hash := sha256.Sum256(token)
	for i := range a.tokens {
		if subtle.ConstantTimeCompare(hash[:], a.tokens[i].hash[:]) == 1 {
			c.is(a.known(a.tokens[i].agent), session)
		}
	}
	if a.book == nil {
		return
	}
	switch e := a.book.ByHash(&hash); {
	case e == nil:
	case e.Expired(time.Now()):
		c.expired = true
	default:
		c.is(identity{agent: e.ID, entry: e}, session)
	}
}

func (c *asserted) is(who identity, session []byte) {
	c.two = c.two || c.agent != "" && c.agent != who.agent
	if who.session = string(session); who.session == "" {
		who.session = c.session
	}
	c.identity = who
}

// judge tells what came of the tokens.
func (a *Agents) judge(c *asserted) (identity, error) {
	switch {
	case a.open:
		who := a.known(AnonymousAgent)
		who.session = c.session
		return who, nil
	case c.two:
		return identity{}, errTwoAgents
	case c.agent != "":
		return c.identity, nil
	case c.expired:
		return identity{}, errExpired
	case c.seen && a.book != nil && !a.book.Known():
		return identity{}, errUnknowing
	case c.seen:
		return identity{}, errBadToken
	}
	return identity{}, errNoToken
}

// known is an agent that is not known by the book, which may have limits for it.
func (a *Agents) known(agent string) identity {
	id := identity{agent: agent}
	if a.book != nil {
		id.entry = a.book.ByID(agent)
	}
	return id
}

// The bounds of guessing. Who shows a good token is never held up by what others
// behind its address send: 256 bit are not found, however many are tried.
const (
	guessBurst = 20              // wrong tokens from one address at once
	guessEvery = time.Second     // one more after each
	guessRoom  = 4096            // addresses that are remembered
	guessSweep = 5 * time.Second // how often those are forgotten that guess no more
)

// guesses are the wrong tokens of each address. It is safe for concurrent use.
type guesses struct {
	mu    sync.Mutex
	from  map[netip.Prefix]*rate.Limiter
	swept time.Time
}

// wrong counts a wrong token from the address; it returns how long whoever guesses there
// is told to wait, 0 while some are left. Tokens are looked at meanwhile, too: a good one
// is let in.
func (g *guesses) wrong(now time.Time, from net.Addr) time.Duration {
	key := network(from)
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.from[key]
	if l == nil {
		g.makeRoom(now)
		l = rate.NewLimiter(rate.Every(guessEvery), guessBurst)
		g.from[key] = l
	}
	if l.AllowN(now, 1) {
		return 0
	}
	return guessEvery
}

// makeRoom forgets addresses that could guess as much anew, and where that is not
// enough, any.
func (g *guesses) makeRoom(now time.Time) {
	if g.from == nil {
		g.from = make(map[netip.Prefix]*rate.Limiter)
	}
	if len(g.from) < guessRoom {
		return
	}
	if now.Sub(g.swept) >= guessSweep {
		g.swept = now
		for key, l := range g.from {
			if l.TokensAt(now) >= guessBurst {
				delete(g.from, key)
			}
		}
	}
	for key := range g.from {
		if len(g.from) < guessRoom {
			return
		}
		delete(g.from, key)
	}
}

// network is whom an address is counted as: one of IPv4, or the /64 of IPv6 that one
// customer has. All of a unix socket are one.
func network(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(tcp.IP)
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // of an address that is none it is the one of a unix socket
	return p
}
