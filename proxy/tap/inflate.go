package tap

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
)

// inflater decodes deflate data, again and again.
type inflater struct {
	r    *bufio.Reader
	text io.ReadCloser
}

// reset makes i ready for another input.
func (i *inflater) reset(r io.Reader) {
	if i.r == nil {
		i.r = bufio.NewReaderSize(r, copySize)
	} else {
		i.r.Reset(r)
	}
}

// begin makes text decode what comes next in r.
func (i *inflater) begin() error {
	if i.text == nil {
		i.text = flate.NewReader(i.r)
		return nil
	}
	return i.text.(flate.Resetter).Reset(i.r, nil)
}

// gzipReader decodes a gzip file (RFC 1952) of one or more members. Unlike the
// libraries' readers it gives out the last text of a member without waiting
// for the member's checksum, which it does not verify: the answer is the
// agent's to verify, and the event that ends it must be seen before it goes on.
type gzipReader struct {
	inflater
	open bool // a member
	some bool // there was a member
}

// Reset implements stage.
func (g *gzipReader) Reset(r io.Reader) error {
	g.open, g.some = false, false
	g.reset(r)
	return nil
}

// Read implements io.Reader.
func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		if !g.open {
			if err := g.header(); err != nil {
				return 0, err
			}
			if err := g.begin(); err != nil {
				return 0, err
			}
			g.open = true
		}
		n, err := g.text.Read(p)
		if err != io.EOF {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		g.open = false
		if _, err := io.CopyN(io.Discard, g.r, 8); err != nil { // checksum and length
			return 0, short(err)
		}
	}
}

// header reads a member's header. Behind the first member, anything that is no
// header ends the file, as padding does.
func (g *gzipReader) header() error {
	const (
		hasCRC = 2 << iota
		hasExtra
		hasName
		hasComment
	)
	var h [10]byte
	if n, err := io.ReadFull(g.r, h[:]); err != nil {
		if g.some || n == 0 {
			return io.EOF
		}
		return short(err)
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		if g.some {
			return io.EOF
		}
		return errGzip
	}
	g.some = true
	flags := h[3]
	if flags&hasExtra != 0 {
		var size [2]byte
		if _, err := io.ReadFull(g.r, size[:]); err != nil {
			return short(err)
		}
		if _, err := io.CopyN(io.Discard, g.r, int64(size[0])|int64(size[1])<<8); err != nil {
			return short(err)
		}
	}
	for _, text := range []byte{hasName, hasComment} {
		if flags&text == 0 {
			continue
		}
		for {
			c, err := g.r.ReadByte()
			if err != nil {
				return short(err)
			}
			if c == 0 {
				break
			}
		}
	}
	if flags&hasCRC != 0 {
		if _, err := io.CopyN(io.Discard, g.r, 2); err != nil {
			return short(err)
		}
	}
	return nil
}

// deflateReader decodes "deflate", which is a zlib stream (RFC 1950) or, from
// many servers, the bare deflate data (RFC 1951) within.
type deflateReader struct {
	inflater
	open bool
}

// Reset implements stage.
func (d *deflateReader) Reset(r io.Reader) error {
	d.open = false
	d.reset(r)
	return nil
}

// Read implements io.Reader.
func (d *deflateReader) Read(p []byte) (int, error) {
	if !d.open {
		h, err := d.r.Peek(2)
		if err != nil {
			return 0, err
		}
		if h[0]&0x0f == 8 && (int(h[0])<<8|int(h[1]))%31 == 0 {
			if h[1]&0x20 != 0 {
				return 0, errZlib
			}
			if _, err := d.r.Discard(2); err != nil {
				return 0, err
			}
		}
		if err := d.begin(); err != nil {
			return 0, err
		}
		d.open = true
	}
	return d.text.Read(p)
}

// short makes the end of the input within a structure an error of its own.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
