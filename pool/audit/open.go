package audit

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// open finds out where the log stands and returns what there is to tell of it.
func (l *Log) open() ([]Entry, error) {
	dir := l.opts.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if l.files, err = List(dir); err != nil {
		return nil, err
	}
	if l.key, err = openKey(dir); err != nil {
		return nil, err
	}
	found := &findings{now: time.Now()}
	was, err := readHead(dir, l.key.Public().(ed25519.PublicKey))
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(l.files) == 0:
		// Before the first line, so that a missing head always means something.
		if err := writeHead(dir, l.key, chain{}); err != nil {
			return nil, err
		}
	case errors.Is(err, fs.ErrNotExist):
		found.add(shortened, map[string]string{"what": "head.json was missing, so that lines may be missing before this one"})
	case errors.Is(err, errHead):
		found.add(shortened, map[string]string{"what": err.Error()})
	case err != nil:
		return nil, err
	}
	headKnown := err == nil
	l.headAt = was.seq
	at, headHash, err := l.resume(was, found)
	if err != nil {
		return nil, err
	}
	l.at = at
	switch {
	case !headKnown:
		l.headAt = 0 // to be written in any case
	case was.seq > at.seq:
		found.add(shortened, map[string]string{"what": fmt.Sprintf("lines %d to %d were gone at the start", at.seq+1, was.seq)})
	case headHash != (digest{}) && headHash != was.hash:
		found.add(shortened, map[string]string{"what": fmt.Sprintf("line %d was another one at the start", was.seq)})
	case was.seq < at.seq:
		found.add(unsigned, map[string]string{"first": strconv.FormatUint(was.seq+1, 10), "last": strconv.FormatUint(at.seq, 10)})
	}
	for _, e := range found.entries {
		l.log.Warn("audit log", "found", string(e.Kind), "what", e.Fields)
	}
	return found.entries, nil
}

// findings are entries about the log itself.
type findings struct {
	now     time.Time
	entries []Entry
}

func (f *findings) add(kind Kind, fields map[string]string) {
	f.entries = append(f.entries, Entry{Time: f.now, Kind: kind, Actor: Itself, Fields: fields})
}

// resume finds the last line, cuts off what a crash has left behind it, and opens its
// file to go on there. headHash is the hash of the line with was' seq, when that is
// in this file.
func (l *Log) resume(was chain, found *findings) (at chain, headHash digest, err error) {
	for len(l.files) > 0 {
		name := l.files[len(l.files)-1]
		path := filepath.Join(l.opts.Dir, name)
		at, size, unsignedLines, headHash, damage, err := readBack(path, was.seq)
		if err != nil {
			return at, headHash, err
		}
		if damage == "" || damage == errTorn.Error() {
			torn, err := cutTo(path, size)
			if err != nil {
				return at, headHash, err
			}
			if torn > 0 {
				found.add(cut, map[string]string{"file": name, "bytes": strconv.FormatInt(torn, 10)})
			}
			if size == 0 {
				// A crash came between its making and its first line.
				if err := os.Remove(path); err != nil {
					return at, headHash, err
				}
				l.files = l.files[:len(l.files)-1]
				continue
			}
			l.file, err = os.OpenFile(path, os.O_RDWR, 0o600)
			l.size, l.unsigned, l.since = size, unsignedLines, found.now
			return at, headHash, err
		}
		// Nothing is mended that a crash cannot do: it is evidence. The log goes on in
		// a new file, behind everything that there was.
		found.add(damaged, map[string]string{"what": damage, "file": name})
		if first, _ := firstSeq(name); at.seq < first {
			at = chain{first, digest{}}
		}
		if was.seq > at.seq {
			at = was
		}
		return at, headHash, nil
	}
	return chain{}, headHash, nil
}

// readBack reads a file as far as it is good: its last line, its size up to there,
// how many lines at its end have no signature behind them, and the hash of the line
// with seq wanted. damage tells what is not good about the rest.
func readBack(path string, wanted uint64) (at chain, size int64, unsignedLines int, found digest, damage string, err error) {
	fault := errors.New("")
	err = eachLine(path, func(n int, raw []byte) error {
		line, body, hash, err := parseLine(raw)
		if err != nil {
			damage = fmt.Sprintf("line %d: %s", n, err)
			return fault
		}
		if n == 1 {
			prev, ok := parseDigest(line.Fields["prev"])
			if !ok || line.Seq == 0 {
				damage = "it does not begin as a file does"
				return fault
			}
			at = chain{line.Seq - 1, prev}
		}
		if line.Seq != at.seq+1 || at.next(body) != hash {
			damage = fmt.Sprintf("line %d is not the one that followed", n)
			return fault
		}
		at = chain{line.Seq, hash}
		size += int64(len(raw)) + 1
		unsignedLines++
		if line.Kind == signed {
			unsignedLines = 0
		}
		if line.Seq == wanted {
			found = hash
		}
		return nil
	})
	switch {
	case errors.Is(err, errTorn):
		return at, size, unsignedLines, found, err.Error(), nil
	case errors.Is(err, fault):
		return at, size, unsignedLines, found, damage, nil
	}
	return at, size, unsignedLines, found, "", err
}

// cutTo cuts the file to size and tells how much that was.
func cutTo(path string, size int64) (int64, error) {
	info, err := os.Stat(path)
	if err != nil || info.Size() == size {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	return info.Size() - size, errors.Join(f.Truncate(size), f.Sync(), f.Close())
}
