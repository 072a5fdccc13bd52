package usage

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Life is a time in which a process had a journal's folder open. It begins when the
// folder is opened, with a random id that is on disk before the life gives an event
// its number.
//
// Lives tell folders apart that carry the same writer: whoever opens a copy of a
// folder, or an older state that was put back, begins a life that the other folder
// does not have. Up to there both have the same events under the same numbers, and
// beyond it none.
type Life struct {
	ID    string // hex
	After int64  // the writer's last number before it
}

// Lives are the newest of a folder's lives in which it gave numbers to a
// subscription's events, the oldest first.
type Lives []Life

// maxLives bounds them. Who missed that many lives of the other folder cannot tell
// any more where they parted, see Recorder.leave.
const maxLives = 8

func newLife() string {
	var id [4]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// begin adds the life that begins after number last.
func (s *subProgress) begin(id string, last int64) {
	if n := len(s.Lives); n > 0 && s.Lives[n-1].After == last { // the one before gave no number
		for i, sender := range s.Senders {
			if n > 1 && sender == s.Lives[n-1].ID {
				s.Senders[i] = s.Lives[n-2].ID // what it had counted was that one's
			}
		}
		s.Lives = s.Lives[:n-1]
	}
	s.Lives = append(s.Lives, Life{id, last})
	if len(s.Lives) <= maxLives {
		return
	}
	// Redis knows one of the senders. A life of which it never heard is not missed: a
	// crash has repeated itself while Redis was away. Where there is none, all lives
	// since the oldest one have had something counted.
	for i := len(s.Lives) - 2; i >= 0; i-- {
		if !slices.Contains(s.Senders, s.Lives[i].ID) {
			s.Lives = slices.Delete(s.Lives, i, i+1)
			return
		}
	}
	s.Lives = s.Lives[1:]
}

// has tells whether a life of that id is among them.
func (l Lives) has(id string) bool {
	return slices.ContainsFunc(l, func(life Life) bool { return life.ID == id })
}

// of returns the id of the life that gave number, or would.
func (l Lives) of(number int64) string {
	id := ""
	for i, life := range l {
		if i == 0 || life.After < number {
			id = life.ID
		}
	}
	return id
}

// since returns the lives of a writer whose numbers begin after base.
func (l Lives) since(base int64) Lives {
	var lives Lives
	for i, life := range l {
		if i+1 < len(l) && l[i+1].After <= base {
			continue
		}
		lives = append(lives, Life{life.ID, max(life.After-base, 0)})
	}
	return lives
}

// String returns what the scripts read, see lives.lua.
func (l Lives) String() string {
	var b strings.Builder
	for i, life := range l {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(life.ID)
		b.WriteByte('@')
		b.WriteString(strconv.FormatInt(life.After, 10))
	}
	return b.String()
}

// MarshalText is String.
func (l Lives) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *Lives) UnmarshalText(text []byte) error {
	*l = nil
	for part := range strings.SplitSeq(string(text), ",") {
		id, after, _ := strings.Cut(part, "@")
		n, err := strconv.ParseInt(after, 10, 64)
		if _, notHex := hex.DecodeString(id); err != nil || notHex != nil || n < 0 {
			return fmt.Errorf("%q is no life of a folder", part)
		}
		*l = append(*l, Life{id, n})
	}
	return nil
}

// newWriter returns a new folder's id: 128 random bits in hex.
func newWriter() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// branchWriter returns the id under which a folder goes on that leaves writer after
// number base, the next number being one of life. It is not random: two folders that
// leave a third one, and share events beyond it, meet under the new id as they did
// under the old one.
func branchWriter(writer string, base int64, life string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s", writer, base, life))
	return hex.EncodeToString(sum[:16])
}
