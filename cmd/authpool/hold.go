package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hold keeps a background serve running: it is a lock on a file in the state folder that
// each "authpool run" shares, and that the kernel takes away when it and its agent, which
// inherits the file, are gone. Who
// has it alone is the last, and ends the serve: the run that leaves, or else the serve
// itself, which tries from time to time. Who comes meanwhile waits until it has ended.
type hold struct {
	f   *os.File
	dir string // the state folder
}

// holdFile is what hold locks. The background serve notes in it where it is.
const holdFile = "run.lock"

// The limits of waiting for another process.
const (
	holdPoll  = 100 * time.Millisecond
	holdLimit = time.Minute // longer than a stop takes with the usual shutdown.grace
)

// background is where a background serve is.
type background struct {
	PID   int    `json:"pid"`
	Base  string `json:"base"`  // URL for agents
	Admin string `json:"admin"` // host:port
}

func openHold(dir string) (*hold, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot use the state folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, holdFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot use the state folder: %w", err)
	}
	return &hold{f, dir}, nil
}

// share waits until no serve is ending and then keeps one from it.
func (h *hold) share(ctx context.Context) error {
	return waitFor(ctx, "a serve in "+h.dir+" to end", func() (bool, error) { return h.lock(unix.LOCK_SH) })
}

// alone tells whether nobody else holds it, and then keeps others from it.
func (h *hold) alone() (bool, error) { return h.lock(unix.LOCK_EX) }

func (h *hold) lock(how int) (bool, error) { return flock(h.f, how) }

// flock tells whether it got a lock on a file, as long as that stays open; false: others
// have it.
func flock(f *os.File, how int) (bool, error) {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot lock %s: %w", f.Name(), err)
	}
	return true, nil
}

// startFile is locked by the run that looks for a serve and starts one if need be: who
// comes meanwhile waits for what it finds.
const startFile = "start.lock"

// turn waits until no other run looks for a serve and keeps others from it until end is
// called. The kernel ends it with the process, too, since no program that is started
// inherits the file.
func (h *hold) turn(ctx context.Context) (end func(), err error) {
	f, err := os.OpenFile(filepath.Join(h.dir, startFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot use the state folder: %w", err)
	}
	err = waitFor(ctx, "another authpool run to find its serve", func() (bool, error) { return flock(f, unix.LOCK_EX) })
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// note tells others where the background serve is; nil: nowhere any more.
func (h *hold) note(b *background) error {
	var text []byte
	var err error
	if b != nil {
		text, err = json.Marshal(b)
	}
	if err == nil {
		err = errors.Join(h.f.Truncate(0))
	}
	if err == nil {
		_, err = h.f.WriteAt(text, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", h.f.Name(), err)
	}
	return nil
}

// background returns the background serve that runs; false: none does.
func (h *hold) background() (background, bool) {
	var b background
	text, err := io.ReadAll(io.NewSectionReader(h.f, 0, 4096))
	if err != nil || json.Unmarshal(text, &b) != nil {
		return background{}, false
	}
	return b, b.PID != 0 && b.PID == stateHolder(h.dir)
}

// stateHolder is the process that has a state folder open; 0: none.
func stateHolder(dir string) int {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close() // read only
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0
	}
	text, err := io.ReadAll(io.LimitReader(f, 20))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0 for what is no number
	return pid
}

// leave ends the background serve when nobody else needs it, and waits until it has.
func (h *hold) leave(ctx context.Context) error {
	b, runs := h.background()
	last, err := h.alone()
	if err == nil && runs && last {
		// Its usage is in Redis, or in the journal on disk, once it has ended.
		if err = syscall.Kill(b.PID, syscall.SIGTERM); err == nil || errors.Is(err, syscall.ESRCH) {
			err = waitFor(ctx, "the background serve to end", func() (bool, error) { return stateHolder(h.dir) != b.PID, nil })
		}
	}
	// Of what the agent has left behind, nothing holds it any more.
	return errors.Join(err, unix.Flock(int(h.f.Fd()), unix.LOCK_UN), h.f.Close())
}

// waitFor asks again and again, up to holdLimit.
func waitFor(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, holdLimit)
	defer cancel()
	tick := time.NewTicker(holdPoll)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited too long for %s", what)
		case <-tick.C:
		}
	}
}
