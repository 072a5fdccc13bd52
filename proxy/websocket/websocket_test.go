package websocket_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/proxy/websocket"
)

// part is a frame as a test writes it.
type part struct {
	opcode  websocket.Opcode
	more    bool // not the last of its message
	payload string
	mask    []byte // nil: none
	long    bool   // its length has 64 bits in any case
}

func (f part) bytes() []byte {
	first := byte(f.opcode)
	if !f.more {
		first |= 0x80
	}
	b := []byte{first}
	masked := byte(0)
	if f.mask != nil {
		masked = 0x80
	}
	switch n := len(f.payload); {
	case f.long || n > 1<<16-1:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	case n > 125:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = append(b, masked|byte(n))
	}
	b = append(b, f.mask...)
	for i := range len(f.payload) {
		c := f.payload[i]
		if f.mask != nil {
			c ^= f.mask[i%4]
		}
		b = append(b, c)
	}
	return b
}

// unit is a message or a control frame, put together by who reads along.
type unit struct {
	opcode  websocket.Opcode
	payload string
}

// read cuts wire at the given lengths and returns what a Reader finds.
func read(t failer, r *websocket.Reader, wire []byte, cuts []int) (units []unit, err error) {
	t.Helper()
	open := map[bool]*unit{} // a control frame may come within a message
	for i := 0; len(wire) > 0; i++ {
		n := len(wire)
		if len(cuts) > 0 {
			n = min(n, cuts[i%len(cuts)])
		}
		p := bytes.Clone(wire[:n])
		wire = wire[n:]
		for len(p) > 0 {
			piece, n, err := r.Next(p)
			if err != nil {
				return units, err
			}
			if n == 0 {
				t.Fatal("Next reads nothing")
			}
			control := piece.Opcode.IsControl()
			if piece.Begins {
				open[control] = &unit{opcode: piece.Opcode}
			}
			if piece.Payload {
				clear := make([]byte, n)
				r.Unmask(clear, p[:n])
				open[control].payload += string(clear)
			}
			if piece.Ends {
				units = append(units, *open[control])
				if piece.Opcode == websocket.Close && len(open[control].payload) >= 2 {
					code, reason := r.Closing()
					if got := string(binary.BigEndian.AppendUint16(nil, code)) + reason; got != open[control].payload {
						t.Fatalf("Closing says %q of %q", got, open[control].payload)
					}
				}
			}
			p = p[n:]
		}
	}
	return units, nil
}

func TestReader(t *testing.T) {
	mask := []byte{1, 2, 3, 4}
	f := func(client bool, frames []part, want ...unit) {
		t.Helper()
		var wire []byte
		for _, one := range frames {
			wire = append(wire, one.bytes()...)
		}
		for _, cut := range []int{1, 2, 3, 7, 1 << 20} {
			r := new(websocket.Reader)
			if client {
				r = websocket.NewClientReader()
			}
			got, err := read(t, r, wire, []int{cut})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("cut at %d: %v, %v; want %v", cut, got, err, want)
			}
			if !r.Whole() {
				t.Errorf("cut at %d: a frame is under way", cut)
			}
		}
	}
	big := strings.Repeat("x", 70_000)
	f(false, []part{{opcode: 1, payload: "hello"}}, unit{1, "hello"})
	f(false, []part{{opcode: 2, payload: big}, {opcode: 1}}, unit{2, big}, unit{1, ""})
	f(false, []part{{opcode: 1, payload: "a", long: true}}, unit{1, "a"})
	f(false, []part{{opcode: 1, more: true, payload: "a"}, {opcode: 9, payload: "ping"}, {opcode: 0, more: true}, {opcode: 0, payload: "b"}}, unit{9, "ping"}, unit{1, "ab"})
	f(true, []part{{opcode: 1, payload: "hello", mask: mask}, {opcode: 10, mask: mask}, {opcode: 8, payload: "\x03\xe8bye", mask: mask}}, unit{1, "hello"}, unit{10, ""}, unit{8, "\x03\xe8bye"})
	f(false, []part{{opcode: 8}}, unit{8, ""})
}

func TestReaderRefuses(t *testing.T) {
	f := func(client bool, wire []byte, want error) {
		t.Helper()
		r := new(websocket.Reader)
		if client {
			r = websocket.NewClientReader()
		}
		if _, err := read(t, r, wire, nil); !errors.Is(err, want) {
			t.Errorf("% x: %v, want %v", wire, err, want)
		}
		if _, n, err := r.Next([]byte{0x81, 0}); n != 0 || !errors.Is(err, want) {
			t.Errorf("% x: it goes on", wire)
		}
	}
	f(false, []byte{0xc1, 0}, websocket.ErrReserved)
	f(false, []byte{0x83, 0}, websocket.ErrReserved)
	f(false, []byte{0x8b, 0}, websocket.ErrReserved)
	f(false, []byte{0x09, 0}, websocket.ErrControl)
	f(false, []byte{0x89, 126, 0, 126}, websocket.ErrControl)
	f(false, []byte{0x80, 0}, websocket.ErrMessage)
	f(false, []byte{0x01, 0, 0x81, 0}, websocket.ErrMessage)
	f(false, []byte{0x81, 0x80, 1, 2, 3, 4}, websocket.ErrMask)
	f(true, []byte{0x81, 0}, websocket.ErrMask)
	f(false, []byte{0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, websocket.ErrLength)
}

// However the bytes are cut, the same messages are found.
func TestReaderAnyCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		client := rapid.Bool().Draw(t, "client")
		var wire []byte
		var want []unit
		for range rapid.IntRange(1, 6).Draw(t, "messages") {
			message := unit{opcode: rapid.SampledFrom([]websocket.Opcode{1, 2}).Draw(t, "opcode")}
			parts := rapid.IntRange(1, 4).Draw(t, "frames")
			for i := range parts {
				one := part{opcode: message.opcode, more: i < parts-1, payload: rapid.StringN(0, 200, 400).Draw(t, "payload"), long: rapid.Bool().Draw(t, "long")}
				if i > 0 {
					one.opcode = websocket.Continuation
				}
				message.payload += one.payload
				control := part{opcode: websocket.Ping, payload: rapid.StringN(0, 20, 100).Draw(t, "ping")}
				if client {
					one.mask, control.mask = []byte{9, 8, 7, byte(i)}, []byte{0, 255, 1, 2}
				}
				wire = append(wire, one.bytes()...)
				if one.more && rapid.Bool().Draw(t, "pings") {
					wire = append(wire, control.bytes()...)
					want = append(want, unit{websocket.Ping, control.payload})
				}
			}
			want = append(want, message)
		}
		r := new(websocket.Reader)
		if client {
			r = websocket.NewClientReader()
		}
		got, err := read(t, r, wire, rapid.SliceOfN(rapid.IntRange(1, 300), 1, 8).Draw(t, "cuts"))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
	})
}

// failer is what a *testing.T and a *rapid.T have in common.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func TestAppendClose(t *testing.T) {
	for _, reason := range []string{"", "authpool is stopping", strings.Repeat("ü", 100)} {
		units, err := read(t, new(websocket.Reader), websocket.AppendClose(nil, websocket.GoingAway, reason), nil)
		if err != nil || len(units) != 1 || units[0].opcode != websocket.Close || !strings.HasPrefix(reason, units[0].payload[2:]) || len(units[0].payload) > 125 {
			t.Errorf("%q: %v, %v", reason, units, err)
		}
	}
}

// FuzzReader: it never panics, and reads the same whatever the cuts.
func FuzzReader(f *testing.F) {
	f.Add([]byte{0x81, 5, 'h', 'e', 'l', 'l', 'o', 0x88, 2, 3, 0xe8}, 1, false)
	f.Add([]byte{0x01, 0x81, 1, 2, 3, 4, 'x', 0x89, 0x80, 1, 2, 3, 4, 0x80, 0x80, 0, 0, 0, 0}, 3, true)
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0, 1}, 2, false)
	f.Fuzz(func(t *testing.T, wire []byte, cut int, client bool) {
		reader := func() *websocket.Reader {
			if client {
				return websocket.NewClientReader()
			}
			return new(websocket.Reader)
		}
		whole, err := read(t, reader(), wire, nil)
		parts, perr := read(t, reader(), wire, []int{max(1, cut%64)})
		if !errors.Is(perr, err) || !slices.Equal(whole, parts) {
			t.Errorf("whole: %v, %v; cut: %v, %v", whole, err, parts, perr)
		}
	})
}
