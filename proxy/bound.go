package proxy

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tap"
)

// bound reads the ids of account-bound things from an answer that may make some,
// beside the meter. It is a tap.Sink in front of the meter, so that the answers
// that make nothing do not pass it at all.
type bound struct {
	next   tap.Sink // nil: nobody
	made   provider.Made
	events tap.Events
	form   boundForm
	begun  bool // the event being read has begun
}

// boundForm is how the texts stand in the body.
type boundForm uint8

const (
	boundUnknown boundForm = iota // nothing yet
	boundText                     // the body is one JSON text
	boundEvents                   // server-sent events
	boundBlind                    // something else, or nothing more to read
)

func (b *bound) reset(next tap.Sink, f provider.Family) {
	b.next, b.form, b.begun = next, boundUnknown, false
	b.made.Reset(f)
	b.events.Reset()
}

// Write implements tap.Sink.
func (b *bound) Write(p []byte) {
	if b.next != nil {
		b.next.Write(p)
	}
	if b.form == boundUnknown {
		for len(p) > 0 && strings.IndexByte(" \t\r\n\xef\xbb\xbf", p[0]) >= 0 {
			p = p[1:] // white space, a byte order mark
		}
		if len(p) == 0 {
			return
		}
		switch p[0] {
		case '{':
			b.form = boundText
		case 'd', 'e', 'i', 'r', ':': // data, event, id, retry, a comment
			b.form = boundEvents
		default:
			b.form = boundBlind
		}
	}
	switch b.form {
	case boundText:
		b.made.Write(p)
	case boundEvents:
		b.readEvents(p)
	default:
	}
}

func (b *bound) readEvents(p []byte) {
	for {
		what, data, n := b.events.Next(p)
		p = p[n:]
		switch what {
		case tap.None:
			return
		case tap.Data:
			if !b.begun {
				b.begun = true
				b.made.Begin()
			}
			b.made.Write(data)
		case tap.End:
			b.begun = false
		default:
		}
	}
}

// Blind implements tap.Sink.
func (b *bound) Blind() {
	b.form = boundBlind
	if b.next != nil {
		b.next.Blind()
	}
}

// Close implements tap.Sink.
func (b *bound) Close() {
	if b.next != nil {
		b.next.Close()
	}
}

// watchMade has the ids read that the answer makes, if it can make any, in its head and body; next is who
// else reads it, or nil.
func (ex *exchange) watchMade(next tap.Sink) tap.Sink {
	if !ex.info.Makes {
		return next
	}
	if ex.bound == nil {
		ex.bound = new(bound)
	}
	ex.bound.reset(next, ex.provider.Family)
	for name, value := range ex.call.Header.All() {
		if equalFold(name, "location") { // of a call of the Realtime API, whose body is no JSON
			ex.bound.made.Location(value)
		}
	}
	ex.making = true
	return ex.bound
}

// learnMade tells the pool, once, what the answer has made. It is called before the
// agent has the answer's last bytes.
func (ex *exchange) learnMade() {
	if !ex.making {
		return
	}
	ex.making = false
	ids := ex.bound.made.IDs()
	if len(ids) == 0 {
		return
	}
	made := make([]pool.Made, len(ids))
	for i, id := range ids {
		made[i] = pool.Made{
			Resource: pool.Resource{ID: id, Subscription: ex.lease.Subscription().ID, Agent: ex.agent},
			Keep:     provider.KeepResource(id),
		}
	}
	// Whether the agent is still there does not matter to who asks next.
	ex.s.deps.Pool.Learn(context.Background(), made)
}

// bind finds who has what the request names, and with it the one subscription that
// can serve. With isolation it refuses what is another agent's, as the provider
// would if it did not exist, and to list what the agents have between them.
func (ex *exchange) bind(req *provider.Request) *refusal {
	var ids []string
	for _, id := range ex.info.Pins.IDs {
		if provider.KeepResource(id) > 0 {
			ids = append(ids, id)
		}
	}
	if !ex.settings.Isolate {
		owned, _ := ex.s.deps.Pool.Owners(ex.leave, ex.provider.Name, ids)
		ex.ownedBy(owned)
		return nil
	}
	if ex.info.Endpoint.Lists {
		return &refusal{
			status: fasthttp.StatusForbidden, code: codeIsolated,
			message: "lists show what all agents have made, which agents.isolation: strict keeps apart; ask for a single id, or have the operator set it to shared",
		}
	}
	named := namedIDs.Get().(*provider.Named)
	defer namedIDs.Put(named)
	named.Find(req, &ex.info.Pins)
	if named.Unread {
		return &refusal{
			status: fasthttp.StatusBadRequest, code: codeIsolated,
			message: "the body cannot be looked through for other agents' files and answers (agents.isolation: strict); send it uncompressed or by gzip, br, deflate or zstd alone, and name fewer of them",
		}
	}
	// The first that is known is the owner of all; those of the documented places come
	// first.
	owned, sure := ex.s.deps.Pool.Owners(ex.leave, ex.provider.Name, named.IDs)
	for _, one := range owned {
		if one.Agent != ex.agent && one.Agent != "" {
			return &refusal{
				status: ex.info.Shape.Missing(), code: codeIsolated, final: true,
				message: "there is no " + one.ID + " for agent " + ex.agent + " (agents.isolation: strict)",
			}
		}
	}
	if !sure {
		isolationUnsure.Inc()
	}
	for i, one := range owned {
		if !slices.Contains(ids, one.ID) {
			owned = owned[:i]
			break
		}
	}
	ex.ownedBy(owned)
	return nil
}

var namedIDs = sync.Pool{New: func() any { return new(provider.Named) }}

func (ex *exchange) ownedBy(owned []pool.Resource) {
	ex.owner = ""
	if len(owned) > 0 {
		ex.owner = owned[0].Subscription
	}
}
