package statedir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by Open's error when another process has the folder.
var ErrInUse = errors.New("another authpool is running with it")

// acquire locks the file at path for as long as it stays open. The lock belongs
// to the open file, so it ends with the process however that ends; the file
// itself stays, because removing it would let two processes lock two files of
// one name.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = inUse(f)
		} else {
			err = fmt.Errorf("cannot lock %s: %w", path, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	// For people, and for the message of the process that comes second.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write %s: %w", path, err), f.Close())
	}
	return f, nil
}

// lock tries for a moment: who only looks whether a folder is in use has its lock that
// long.
func lock(f *os.File) error {
	const tries, pause = 10, 10 * time.Millisecond
	for try := 1; ; try++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || try == tries {
			return err
		}
		<-time.After(pause)
	}
}

// inUse tells who holds the lock, as far as the file says.
func inUse(f *os.File) error {
	const advice = "stop that one, or give this one a folder of its own by --state-dir"
	text, err := io.ReadAll(io.LimitReader(f, 20))
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return fmt.Errorf("%w (process %s): %s", ErrInUse, pid, advice)
	}
	return fmt.Errorf("%w: %s", ErrInUse, advice)
}
