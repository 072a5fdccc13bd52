package usage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// To let go of segments, progress must be written first; on a full disk that would
// wait for ever for what it is to bring about. So the folder holds a file that is
// good for nothing but its size: it makes way then, and is put back when there is
// room. Its bytes are random, as a file system may not store equal ones.
const (
	reserveName = "reserve"
	reserveSize = 256 << 10 // above the progress of five hundred subscriptions
)

// noSpace tells whether a disk refused for want of space.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// fillReserve makes the reserve if it is not there.
func (j *Journal) fillReserve() error {
	path := filepath.Join(j.dir, reserveName)
	if info, err := os.Stat(path); err == nil && info.Size() == reserveSize {
		return nil
	}
	bytes := make([]byte, reserveSize)
	rand.Read(bytes)
	if err := writeSynced(path, bytes); err != nil {
		return errors.Join(fmt.Errorf("cannot reserve %d bytes of the disk: %w", reserveSize, err), os.Remove(path))
	}
	return nil
}

// withReserve does something that needs a little space, if need be that of the
// reserve. Events do not take it meanwhile: see Journal.bound.
func (j *Journal) withReserve(do func() error) error {
	err := do()
	if !noSpace(err) || os.Remove(filepath.Join(j.dir, reserveName)) != nil {
		return err
	}
	return do()
}
