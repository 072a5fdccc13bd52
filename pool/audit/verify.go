package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Report is what Verify has found good.
type Report struct {
	Files       int    `json:"files"`
	Lines       int    `json:"lines"`
	First       uint64 `json:"first"`    // seq of the first line; 0: there is none
	Last        uint64 `json:"last"`     // and of the last
	Unsigned    int    `json:"unsigned"` // lines at the end that no signature covers
	Torn        bool   `json:"torn"`     // half a line follows them: it is being written, or its writer was killed
	PublicKey   string `json:"public_key"`
	LastHash    string `json:"last_hash"`
	HeadChecked bool   `json:"head_checked"` // lines that are missing at the end would have been missed
}

// FaultError is the first line of a log that is not as it was written.
type FaultError struct {
	File string
	Line int    // from 1; one more than there are when lines are missing at the end
	What string // the sentence behind the place
}

// Error implements error.
func (f *FaultError) Error() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What) }

// Verify reads the log at path, a folder or one of its files, and returns a *FaultError
// for the first line that was edited, removed, put in or moved, or that tells of such
// a thing before a start. key is the public key; nil: the one in the folder, which
// proves nothing against who could change that, too. A file that is not the last one
// may have lost lines at its end; Report.HeadChecked tells.
//
// It may run while the log is written.
func Verify(path string, key ed25519.PublicKey) (Report, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Report{}, fmt.Errorf("cannot read the audit log: %w", err)
	}
	v := verifier{dir: path, key: key, removed: map[chain]uint64{}}
	only := ""
	if !info.IsDir() {
		v.dir, only = filepath.Split(path)
		v.dir = filepath.Clean(v.dir)
	}
	if v.key == nil {
		if v.key, err = readPublicKey(v.dir); err != nil {
			return Report{}, err
		}
	}
	// The head before the files: a log that is written meanwhile is only longer.
	v.head, v.headErr = readHead(v.dir, v.key)
	names, err := List(v.dir)
	if err != nil {
		return Report{}, fmt.Errorf("cannot read the audit log: %w", err)
	}
	v.whole = true
	if only != "" {
		v.whole = len(names) > 0 && names[len(names)-1] == only
		names = []string{only}
	}
	v.alone = only != ""
	return v.verify(names)
}

type verifier struct {
	dir     string
	key     ed25519.PublicKey
	head    chain
	headErr error
	whole   bool // the log is read up to its end
	alone   bool // what is before does not matter

	report  Report
	at      chain            // the line before
	start   chain            // the line before the first one
	covered uint64           // seq of the last line that a signature covers
	removed map[chain]uint64 // the last lines of removed files, by the seq of the line that tells of it
	file    string           // under way
	line    int
}

func (v *verifier) fault(format string, args ...any) error {
	return &FaultError{File: filepath.Join(v.dir, v.file), Line: v.line, What: fmt.Sprintf(format, args...)}
}

func (v *verifier) verify(names []string) (Report, error) {
	v.report.PublicKey = FormatPublicKey(v.key)
	for _, v.file = range names {
		v.line = 0
		err := eachLine(filepath.Join(v.dir, v.file), v.one)
		switch {
		case errors.Is(err, errTorn) && v.mayBeTorn(names):
			v.report.Torn = true
		case errors.Is(err, errTorn):
			v.line++
			return v.report, v.fault("the line is cut off, at seq %d", v.at.seq+1)
		case errors.Is(err, fs.ErrNotExist):
			return v.report, fmt.Errorf("cannot read the audit log: %w; if it was removed for room just now, try again", err)
		case err != nil:
			return v.report, err
		case v.line == 0 && v.file != names[len(names)-1]:
			v.line = 1
			return v.report, v.fault("the file is empty, though others follow")
		}
		v.report.Files++
	}
	if err := v.checkEnd(); err != nil {
		return v.report, err
	}
	if err := v.checkStart(names); err != nil {
		return v.report, err
	}
	v.report.Last, v.report.LastHash = v.at.seq, v.at.hash.String()
	v.report.Unsigned = int(v.at.seq - min(v.at.seq, max(v.covered, v.start.seq)))
	return v.report, nil
}

// mayBeTorn tells whether half a line at the end is what a serve is writing, or was
// when it was killed: everything that head.json has signed is before it.
func (v *verifier) mayBeTorn(names []string) bool {
	return v.whole && v.file == names[len(names)-1] && v.headErr == nil && v.at.seq >= v.head.seq
}

// one checks a line.
func (v *verifier) one(n int, raw []byte) error {
	v.line = n
	line, body, hash, err := parseLine(raw)
	if err != nil {
		return v.fault("%s; seq %d was to come", err, v.at.seq+1)
	}
	if n == 1 {
		if err := v.begin(&line); err != nil {
			return err
		}
	}
	if line.Seq != v.at.seq+1 {
		return v.fault("it has seq %d where %d was to come: lines were removed, put in or moved", line.Seq, v.at.seq+1)
	}
	if v.at.next(body) != hash {
		return v.fault("its hash is wrong (seq %d): the line was edited, or is not the one that followed", line.Seq)
	}
	switch line.Kind {
	case fileBegun:
		if n != 1 {
			return v.fault("a file begins in the middle of another (seq %d)", line.Seq)
		}
	case signed:
		signature, err := base64.StdEncoding.Strict().DecodeString(line.Fields["signature"])
		if err != nil || !ed25519.Verify(v.key, lineMessage(v.at.hash), signature) {
			return v.fault("its signature is not of the key %s (seq %d)", v.report.PublicKey, line.Seq)
		}
		v.covered = line.Seq
	case removed:
		if before, err := removedChain(&line); err == nil {
			v.removed[before] = line.Seq
		}
	case damaged, shortened:
		return v.fault("it tells that the log was changed before a start (seq %d): %s", line.Seq, line.Fields["what"])
	default: // what others say is not needed here
	}
	v.at = chain{line.Seq, hash}
	v.report.Lines++
	if v.headErr == nil && v.at.seq == v.head.seq && v.whole {
		if v.at.hash != v.head.hash {
			return v.fault("it is not the line that head.json has signed (seq %d)", line.Seq)
		}
		v.covered = line.Seq
	}
	return nil
}

// begin checks what the first line of a file says.
func (v *verifier) begin(line *Line) error {
	first, ok := firstSeq(v.file)
	before, good := parseDigest(line.Fields["prev"])
	switch {
	case line.Kind != fileBegun || !good:
		return v.fault("a file does not begin with its %s line", fileBegun)
	case ok && first != line.Seq:
		return v.fault("it has seq %d, and the file's name says %d: files were swapped or renamed, or lines removed", line.Seq, first)
	case line.Fields["public_key"] != v.report.PublicKey:
		return v.fault("the file is signed by the key %s, not by %s", shorten(line.Fields["public_key"]), v.report.PublicKey)
	}
	if v.report.First == 0 {
		v.report.First = line.Seq
		v.start = chain{line.Seq - 1, before}
		v.at = v.start
	} else if before != v.at.hash {
		return v.fault("it does not follow the file before (seq %d)", line.Seq)
	}
	return nil
}

// checkEnd finds lines that are missing at the end.
func (v *verifier) checkEnd() error {
	if !v.whole {
		return nil
	}
	v.line++
	switch {
	case errors.Is(v.headErr, fs.ErrNotExist):
		return v.fault("head.json is missing, so that lines may be missing here")
	case v.headErr != nil:
		return v.fault("lines may be missing here: %s", v.headErr)
	case v.head.seq > v.at.seq:
		return v.fault("lines %d to %d are missing here: head.json has signed them", v.at.seq+1, v.head.seq)
	}
	v.report.HeadChecked = true
	return nil
}

// checkStart finds lines that are missing at the beginning, unless a signed line says
// that they were removed.
func (v *verifier) checkStart(names []string) error {
	if v.alone || v.report.First == 0 {
		return nil
	}
	v.file, v.line = names[0], 1
	if v.start.seq == 0 {
		if v.start.hash != (digest{}) {
			return v.fault("the first line follows another one")
		}
		return nil
	}
	if told, ok := v.removed[v.start]; !ok || told > v.covered {
		return v.fault("lines 1 to %d are missing before it, and no signed line says that they were removed for room", v.start.seq)
	}
	return nil
}
