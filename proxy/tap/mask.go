package tap

import "bytes"

const (
	// minMask is the shortest text worth masking.
	minMask = 8
	// maxNeedle is how much of a text is searched for before it is compared as
	// a whole: up to 63 bytes bytes.Index has a vector instruction.
	maxNeedle = 32
)

// mask finds texts in a stream: it overwrites them (pass) or tells of them
// (sees). One answer uses one of the two.
type mask struct {
	texts [][]byte
	held  []byte // a tail that could begin a text, not yet passed on
	buf   []byte // held and the piece behind it
}

func (m *mask) reset(texts [][]byte) {
	m.texts = m.texts[:0]
	for _, text := range texts {
		if len(text) >= minMask {
			m.texts = append(m.texts, text)
		}
	}
	m.held = m.held[:0]
}

// pass overwrites the texts in p and returns p without a tail that could begin
// one, and with the tail that was held back before in front.
//
// It goes from left to right and decides at each place only when all texts can
// be decided there, so that the result does not depend on how the answer is
// cut into pieces.
func (m *mask) pass(p []byte) []byte {
	if len(m.texts) == 0 || len(p) == 0 {
		return p
	}
	if len(m.held) > 0 {
		m.buf = append(append(m.buf[:0], m.held...), p...)
		p = m.buf
		m.held = m.held[:0]
	}
	for at := 0; ; {
		begin, length := len(p), 0 // the first text in p[at:]
		hold := len(p)             // where a text begins that p cuts off
		for _, text := range m.texts {
			if i := find(p[at:], text); i >= 0 && (at+i < begin || at+i == begin && len(text) > length) {
				begin, length = at+i, len(text)
			}
			hold = min(hold, len(p)-beginning(p[at:], text))
		}
		if hold <= begin {
			m.held = append(m.held, p[hold:]...)
			return p[:hold]
		}
		at = begin + length
		for i := begin; i < at; i++ {
			p[i] = '*'
		}
	}
}

// finish returns the tail held back: with nothing behind it, it is no text.
func (m *mask) finish() []byte {
	m.buf = append(m.buf[:0], m.held...)
	m.held = m.held[:0]
	return m.buf
}

// sees reports whether a text stands in p, or across the border to what sees
// was given before.
func (m *mask) sees(p []byte) bool {
	if len(m.texts) == 0 {
		return false
	}
	longest := 0
	for _, text := range m.texts {
		if find(p, text) >= 0 {
			return true
		}
		longest = max(longest, len(text))
	}
	m.buf = append(append(m.buf[:0], m.held...), p[:min(len(p), longest-1)]...)
	for _, text := range m.texts {
		if find(m.buf, text) >= 0 {
			return true
		}
	}
	// Keep the last bytes of everything seen so far.
	if len(p) < longest-1 {
		m.held = append(m.held, p...)
		if extra := len(m.held) - (longest - 1); extra > 0 {
			m.held = append(m.held[:0], m.held[extra:]...)
		}
	} else {
		m.held = append(m.held[:0], p[len(p)-(longest-1):]...)
	}
	return false
}

// find is bytes.Index for a long text.
func find(p, text []byte) int {
	needle := text[:min(len(text), maxNeedle)]
	for at := 0; ; {
		i := bytes.Index(p[at:], needle)
		if i < 0 {
			return -1
		}
		at += i
		if bytes.HasPrefix(p[at:], text) {
			return at
		}
		at++
	}
}

// beginning returns the length of the longest end of p that begins text but is
// not the whole of it.
func beginning(p, text []byte) int {
	tail := p[max(0, len(p)-(len(text)-1)):]
	for len(tail) > 0 {
		i := bytes.IndexByte(tail, text[0])
		if i < 0 {
			return 0
		}
		tail = tail[i:]
		if bytes.HasPrefix(text, tail) {
			return len(tail)
		}
		tail = tail[1:]
	}
	return 0
}
