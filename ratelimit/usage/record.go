package usage

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// A segment file is segmentMagic and then records, each
//
//	length   uint32, little endian, of the payload
//	checksum uint32, little endian, CRC-32C of the payload
//	payload
//
// and a payload is: the kind, one byte; the number, uvarint, 0 for an open; the
// subscription and the event's id; time, varint, epoch ms; flags, one byte; the
// six counts of Tokens and the cost, uvarints; then provider, agent, session, model
// and price version. What few events have follows, as the flags say: units, which
// are how many counts there are, uvarint, and the counts, uvarints; then batch and
// item. A string is its length, uvarint, and its bytes. Of a write (see WriteLog)
// the entry follows the id, which is empty.
//
// Records without those are what the first version wrote, to the byte. A flag or a
// count that is not known here makes a record unreadable: it is better told as
// damage than counted for something else.
const (
	segmentMagic = "apjrnl\x00\x01" // the last byte is the version
	frameSize    = 8
	// maxRecord bounds a payload: names are short, so a larger one is damage.
	maxRecord = 64 << 10
	// maxNumber bounds a number: the script counts in doubles.
	maxNumber = 1 << 53
)

// The kinds of record.
const (
	recordEvent byte = 1 // a finished answer, numbered
	recordOpen  byte = 2 // an answer under way: its usage so far
	recordVoid  byte = 3 // an answer under way that came to nothing: only its id
	recordWrite byte = 4 // an entry of the WriteLog, numbered
)

// The flags of an event.
const (
	flagUnpriced byte = 1 << iota
	flagEstimated
	flagUnknown
	flagFurther
	flagUnits // units follow
	flagBatch // batch and item follow

	allFlags = flagUnpriced | flagEstimated | flagUnknown | flagFurther | flagUnits | flagBatch
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errShort    = errors.New("the record is cut off")
	errChecksum = errors.New("the record's checksum is wrong")
	errRecord   = errors.New("the record makes no sense")
)

// appendRecord appends e as one framed record to b.
func appendRecord(b []byte, kind byte, number int64, e *Event) []byte {
	start := len(b)
	b = append(b, make([]byte, frameSize)...)
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(number))
	b = appendString(b, e.Subscription)
	b = appendString(b, e.ID)
	b = binary.AppendVarint(b, e.Time)
	var flags byte
	if e.Unpriced {
		flags |= flagUnpriced
	}
	if e.Estimated {
		flags |= flagEstimated
	}
	if e.Unknown {
		flags |= flagUnknown
	}
	if e.Further {
		flags |= flagFurther
	}
	if e.Units != (Units{}) {
		flags |= flagUnits
	}
	if e.Batch != "" || e.Item != "" {
		flags |= flagBatch
	}
	b = append(b, flags)
	t := &e.Tokens
	for _, n := range [...]int64{t.Input, t.Output, t.CacheRead, t.CacheWrite5m, t.CacheWrite1h, t.Reasoning, e.CostNanoUSD} {
		b = binary.AppendUvarint(b, uint64(clamp(n)))
	}
	for _, s := range [...]string{e.Provider, e.Agent, e.Session, e.Model, e.PriceVersion} {
		b = appendString(b, s)
	}
	if flags&flagUnits != 0 {
		units := e.Units.refs()
		b = binary.AppendUvarint(b, uint64(len(units)))
		for _, n := range units {
			b = binary.AppendUvarint(b, uint64(clamp(*n)))
		}
	}
	if flags&flagBatch != 0 {
		b = appendString(b, shorten(e.Batch))
		b = appendString(b, shorten(e.Item))
	}
	sealFrame(b[start:])
	return b
}

// appendWrite appends an entry of the WriteLog as one framed record to b.
func appendWrite(b []byte, number int64, entry []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, frameSize)...)
	b = append(b, recordWrite)
	b = binary.AppendUvarint(b, uint64(number))
	b = appendString(b, "")
	b = appendString(b, "")
	b = append(b, entry...)
	sealFrame(b[start:])
	return b
}

// sealFrame writes length and checksum in front of the payload that follows them.
func sealFrame(b []byte) {
	payload := b[frameSize:]
	binary.LittleEndian.PutUint32(b, uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(payload, castagnoli))
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// payloadLength reads a frame's head of frameSize bytes. It is 0 for a length that
// no record has.
func payloadLength(head []byte) int {
	if n := binary.LittleEndian.Uint32(head); n <= maxRecord {
		return int(n)
	}
	return 0
}

// parseFrame returns the payload of the record at the head of b and the size of
// the whole record. errShort means that b ends too early.
func parseFrame(b []byte) (payload []byte, size int, err error) {
	if len(b) < frameSize {
		return nil, 0, errShort
	}
	n := payloadLength(b)
	if n == 0 {
		return nil, 0, errRecord
	}
	size = frameSize + n
	if len(b) < size {
		return nil, 0, errShort
	}
	payload = b[frameSize:size]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0, errChecksum
	}
	return payload, size, nil
}

// record is a payload whose head is parsed: enough to know whether anyone wants
// the rest.
type record struct {
	kind         byte
	number       int64
	subscription []byte // of the payload
	id           []byte // of the payload
	rest         []byte // of the payload
}

// parseRecord reads the head of a payload.
func parseRecord(payload []byte) (record, error) {
	d := decoder{b: payload}
	r := record{kind: d.byte(), number: int64(d.uvarint()), subscription: d.bytes(), id: d.bytes()}
	r.rest = d.b
	numbered := r.kind == recordEvent || r.kind == recordWrite
	switch {
	case d.bad, r.kind < recordEvent, r.kind > recordWrite, r.number < 0, r.number > maxNumber, numbered != (r.number > 0):
		return record{}, errRecord
	}
	return r, nil
}

// event reads the whole event. It shares no memory with the payload.
func (r record) event() (Event, error) {
	d := decoder{b: r.rest, text: string(r.rest)}
	e := Event{ID: string(r.id), Subscription: string(r.subscription), Time: d.varint()}
	flags := d.byte()
	e.Unpriced, e.Estimated, e.Unknown = flags&flagUnpriced != 0, flags&flagEstimated != 0, flags&flagUnknown != 0
	e.Further = flags&flagFurther != 0
	t := &e.Tokens
	for _, n := range [...]*int64{&t.Input, &t.Output, &t.CacheRead, &t.CacheWrite5m, &t.CacheWrite1h, &t.Reasoning, &e.CostNanoUSD} {
		*n = clamp(int64(d.uvarint()))
	}
	for _, s := range [...]*string{&e.Provider, &e.Agent, &e.Session, &e.Model, &e.PriceVersion} {
		*s = d.string()
	}
	if flags&flagUnits != 0 {
		units := e.Units.refs()
		known := d.uvarint() == uint64(len(units))
		for _, n := range units {
			*n = clamp(int64(d.uvarint()))
		}
		d.bad = d.bad || !known
	}
	if flags&flagBatch != 0 {
		e.Batch, e.Item = d.string(), d.string()
	}
	if d.bad || len(d.b) != 0 || flags&^allFlags != 0 {
		return Event{}, errRecord
	}
	return e, nil
}

// decoder takes values from the head of b. Once something was missing, bad is set
// and all that follows is zero.
type decoder struct {
	b    []byte
	text string // the same bytes as b at the start; strings are cut from it
	bad  bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string {
	v := d.bytes()
	end := len(d.text) - len(d.b)
	if d.bad {
		return ""
	}
	return d.text[end-len(v) : end]
}
