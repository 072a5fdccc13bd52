package store

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed cool.lua
	coolSource string
	coolScript = redis.NewScript(coolSource)

	//go:embed state.lua
	stateSource string
	stateScript = redis.NewScript(stateSource)

	//go:embed probe.lua
	probeSource string
	probeScript = redis.NewScript(probeSource)

	//go:embed proved.lua
	provedSource string
	provedScript = redis.NewScript(provedSource)

	//go:embed enable.lua
	enableSource string
	enableScript = redis.NewScript(enableSource)
)

// Closure is what a cooldown closes. It ends the names of the fields that are about
// it.
type Closure string

// The closures; the others are made by ModelClosure.
const (
	ClosesSubscription Closure = "_subscription" // the subscription alone
	ClosesDomain       Closure = "_domain"       // all that share its limits
)

// ModelClosure is that of one model, for all that share the limits.
func ModelClosure(model string) Closure { return Closure(":" + model) }

// Model returns the model that is closed; empty where it is more than that.
func (c Closure) Model() string {
	if model, one := strings.CutPrefix(string(c), ":"); one {
		return model
	}
	return ""
}

// Cooldown is until when a subscription is not offered.
type Cooldown struct {
	Subscription string // in whose state it is
	Closure      Closure
	State        string // "cooling" or "disabled"; not of a model
	Reason       string // not of a model
	Wait         time.Duration
}

// longCooldown is from when on a cooldown must survive authpool: it is cheaper to
// find a shorter one out again than to sync a disk for it.
const longCooldown = time.Minute

// proofKept is how long it is remembered that a probe has succeeded, for the
// processes that find the end of their cooldown later. After it one more probe
// does no harm.
const proofKept = 10 * time.Minute

// Cool shares cooldowns with all processes. A cooldown that ends before the
// known one changes nothing. The long ones are safe when it returns.
func (s *Store) Cool(ctx context.Context, cooldowns []Cooldown) (err error) {
	var short, long []call
	for _, c := range cooldowns {
		made := call{
			[]string{s.subscriptionKey(c.Subscription, "state")},
			[]any{string(c.Closure), ms(c.Wait), c.State, c.Reason, s.channel(), c.Subscription, ms(proofKept)},
		}
		if c.Wait > longCooldown {
			long = append(long, made)
		} else {
			short = append(short, made)
		}
	}
	for _, part := range []struct {
		client redis.UniversalClient
		calls  []call
	}{{s.client, short}, {s.durable, long}} {
		if len(part.calls) == 0 {
			continue
		}
		for _, cmd := range pipeline(ctx, part.client, coolScript, part.calls) {
			if err == nil && cmd.Err() != nil {
				err = fmt.Errorf("cannot share %d cooldowns: %w", len(cooldowns), cmd.Err())
			}
		}
	}
	return err
}

// State is what the fleet knows of a subscription.
type State struct {
	Subscription string
	Organisation string     // that its answers named; empty: none is known
	Cooldowns    []Cooldown // that have not ended, their Wait counted from when Redis answered
	// Enabled says that an operator has ended the cooldowns that began that long ago,
	// or before.
	Enabled    bool
	EnabledAgo time.Duration
}

// States returns those of the given subscriptions. With an error, which is that of
// the first, those of some are missing.
func (s *Store) States(ctx context.Context, subs []string) (list []State, err error) {
	calls := make([]call, len(subs))
	for i, sub := range subs {
		calls[i] = call{keys: []string{s.subscriptionKey(sub, "state"), s.subscriptionKey(sub, "organisation")}}
	}
	for i, cmd := range pipeline(ctx, s.client, stateScript, calls) {
		reply, failed := cmd.StringSlice()
		if failed == nil && (len(reply)%2 != 0 || len(reply) == 0) {
			failed = fmt.Errorf("%w: %q", errReply, reply)
		}
		if failed == nil {
			list = append(list, readState(subs[i], reply))
		} else if err == nil {
			err = fmt.Errorf("cannot read the state of subscription %q: %w", subs[i], failed)
		}
	}
	return list, err
}

// readState reads one reply of the script: Redis' time, the organisation, then
// fields and values of the hash.
func readState(sub string, reply []string) State {
	s := State{Subscription: sub, Organisation: reply[1]}
	now, _ := strconv.ParseInt(reply[0], 10, 64)
	for i := 2; i+1 < len(reply); i += 2 {
		closure, isCooldown := strings.CutPrefix(reply[i], "cooldown")
		instant, rest, _ := strings.Cut(reply[i+1], " ")
		end, _ := strconv.ParseInt(instant, 10, 64) // not an instant: 0, which has passed
		wait := fromMS(end - now)
		switch {
		case reply[i] == "enabled":
			s.Enabled, s.EnabledAgo = true, max(-wait, 0)
		case isCooldown && closure != "_until" && wait > 0: // that one is for people
			c := Cooldown{Subscription: sub, Closure: Closure(closure), Wait: wait}
			c.State, c.Reason, _ = strings.Cut(rest, " ")
			s.Cooldowns = append(s.Cooldowns, c)
		}
	}
	return s
}

// Enable ends all cooldowns in a subscription's state, for all processes, those too
// that hear of it later. It is safe when it returns.
func (s *Store) Enable(ctx context.Context, sub string) error {
	err := enableScript.Run(ctx, s.durable, []string{s.subscriptionKey(sub, "state")}, ms(proofKept), s.channel(), sub).Err()
	if err != nil {
		return fmt.Errorf("cannot share that subscription %q is enabled: %w", sub, err)
	}
	return nil
}

// Probe is the wish to use a subscription again whose cooldown has ended.
type Probe struct {
	Subscription string
	Process      string    // who asks
	Closures     []Closure // that are to be probed
	Hold         time.Duration
	// After a probe that succeeded there may be one request under way for each
	// Pace, and any number after Ramp.
	Pace, Ramp time.Duration
}

// ProbeWord is the answer to a Probe in a word.
type ProbeWord string

// The answers.
const (
	ProbeGranted ProbeWord = "granted" // the next request of this process finds out; no other does
	ProbeTaken   ProbeWord = "probing" // another process does
	ProbeClosed  ProbeWord = "closed"  // the cooldown goes on
	ProbeOpen    ProbeWord = "open"    // another process's probe has succeeded
)

// Proof is the answer to a Probe.
type Proof struct {
	Word ProbeWord
	// Wait is how long the word stays true, unless there is news; for ProbeOpen
	// how long it is until this process may begin.
	Wait  time.Duration
	Since time.Duration // ProbeOpen: how long ago it opened
	Seat  int           // ProbeOpen: how many processes have begun, this one too
}

// Probe asks whether this process may probe.
func (s *Store) Probe(ctx context.Context, p Probe) (Proof, error) {
	args := append([]any{p.Process, ms(p.Hold), ms(p.Pace), ms(p.Ramp)}, closures(p.Closures)...)
	reply, err := probeScript.Run(ctx, s.client, []string{s.subscriptionKey(p.Subscription, "state")}, args...).Slice()
	if err != nil {
		return Proof{}, fmt.Errorf("cannot ask for the probe of subscription %q: %w", p.Subscription, err)
	}
	proof, ok := readProof(reply)
	if !ok {
		return Proof{}, fmt.Errorf("%w: %v", errReply, reply)
	}
	return proof, nil
}

// readProof reads the reply of the script: a word, and then whole numbers.
func readProof(reply []any) (p Proof, ok bool) {
	numbers := make([]int64, 0, 3)
	var word string
	for i, v := range reply {
		switch v := v.(type) {
		case string:
			word, ok = v, i == 0
		case int64:
			numbers = append(numbers, v)
		}
	}
	p.Word = ProbeWord(word)
	switch {
	case !ok || len(numbers) != len(reply)-1:
		return Proof{}, false
	case p.Word == ProbeOpen && len(numbers) == 3:
		p.Since, p.Wait, p.Seat = fromMS(numbers[0]), fromMS(numbers[1]), int(numbers[2])
	case (p.Word == ProbeGranted || p.Word == ProbeTaken || p.Word == ProbeClosed) && len(numbers) == 1:
		p.Wait = fromMS(numbers[0])
	default:
		return Proof{}, false
	}
	return p, true
}

// Probed is how a probe went.
type Probed struct {
	Subscription string
	Process      string
	Closures     []Closure // as in Probe
	Succeeded    bool      // else it ended without a result, or closed anew
}

// Proved tells the other processes how probes went. A cooldown that began
// meanwhile stays.
func (s *Store) Proved(ctx context.Context, list []Probed) (err error) {
	calls := make([]call, len(list))
	for i, p := range list {
		succeeded := 0
		if p.Succeeded {
			succeeded = 1
		}
		calls[i] = call{
			[]string{s.subscriptionKey(p.Subscription, "state")},
			append([]any{p.Process, succeeded, ms(proofKept), s.channel(), p.Subscription}, closures(p.Closures)...),
		}
	}
	for i, cmd := range pipeline(ctx, s.client, provedScript, calls) {
		if err == nil && cmd.Err() != nil {
			err = fmt.Errorf("cannot tell how the probe of subscription %q went: %w", list[i].Subscription, cmd.Err())
		}
	}
	return err
}

// closures are the arguments of a script.
func closures(list []Closure) []any {
	out := make([]any, len(list))
	for i, c := range list {
		out[i] = string(c)
	}
	return out
}
