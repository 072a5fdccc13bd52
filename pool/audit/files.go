package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Files are named so that they sort by the seq of their first line.
const (
	filePrefix = "audit-"
	fileSuffix = ".jsonl"
)

func fileName(seq uint64) string { return fmt.Sprintf("%s%016d%s", filePrefix, seq, fileSuffix) }

// firstSeq is the seq that a file's name tells.
func firstSeq(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, filePrefix)
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, fileSuffix); !ok {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	return seq, err == nil && fileName(seq) == name
}

// List returns the names of the log's files in dir, oldest first.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, ok := firstSeq(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// errTorn says that a file ends in the middle of a line.
var errTorn = errors.New("the line has no end")

// eachLine calls f with each line of the file, without its newline, and with its
// number from 1, until f fails. At the end in the middle of a line it returns
// errTorn, and f has not seen that one.
func eachLine(path string, f func(n int, raw []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	return eachLineOf(file, f)
}

// eachLineOf is eachLine of an open file.
func eachLineOf(file io.Reader, f func(n int, raw []byte) error) error {
	r := bufio.NewReaderSize(file, maxLine)
	for n := 1; ; n++ {
		raw, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(raw) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return errTorn
		case errors.Is(err, bufio.ErrBufferFull):
			return f(n, raw) // it is no line of ours, and f says so
		case err != nil:
			return err
		}
		if err := f(n, raw[:len(raw)-1]); err != nil {
			return err
		}
	}
}

// beginning returns the line before the first one of a file.
func beginning(dir, name string) (chain, error) {
	var before chain
	err := eachLine(filepath.Join(dir, name), func(_ int, raw []byte) error {
		line, _, _, err := parseLine(raw)
		if err != nil {
			return err
		}
		hash, ok := parseDigest(line.Fields["prev"])
		if line.Kind != fileBegun || !ok || line.Seq == 0 {
			return errNoLine
		}
		before = chain{line.Seq - 1, hash}
		return io.EOF // one is enough
	})
	if errors.Is(err, io.EOF) {
		return before, nil
	}
	if err == nil {
		err = errNoLine
	}
	return before, err
}
