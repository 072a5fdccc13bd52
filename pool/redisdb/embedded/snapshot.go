package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A snapshot file is one line and the records of image.go:
//
//	authpool-snapshot 2 <Unix ms> <last entry of the log in it> <keys> <bytes of body> <CRC-32C of body, hex>\n
//
// It is written beside its name, synced, and renamed into place; the former one
// stays as <name>.1. Whatever moment the machine stops at, one of the two is whole.
const (
	headerForm = "authpool-snapshot 2 %d %d %d %d %08x\n"
	// headerForm1 is that of files from before there was a log.
	headerForm1 = "authpool-snapshot 1 %d %d %d %08x\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged marks a file whose content is not what was written.
var errDamaged = errors.New("the file is damaged")

// Saved is the moment up to which all writes are on disk; zero when nothing is
// kept or before the first snapshot.
func (s *Store) Saved() time.Time {
	ns := s.stats.savedAt.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Save puts a snapshot on disk that holds every write made before the call. ctx
// bounds the copying, not the disk. Without a snapshot path it is an error.
func (s *Store) Save(ctx context.Context) error {
	if s.opts.Snapshot == "" {
		return errors.New("cannot save the embedded Redis: it has no snapshot file")
	}
	if err := s.save(ctx); err != nil {
		s.stats.failures.Add(1)
		return fmt.Errorf("cannot write the snapshot %s of the embedded Redis: %w", s.opts.Snapshot, err)
	}
	return nil
}

func (s *Store) save(ctx context.Context) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	at, err := s.catchUp(ctx)
	if err != nil {
		return err
	}
	if s.unsaved {
		size, err := s.writeImage(at)
		if err != nil {
			return err
		}
		s.unsaved = false
		s.stats.bytes.Store(size)
		s.stats.keys.Store(int64(len(s.image)))
	}
	s.stats.savedAt.Store(at.UnixNano())
	s.savedMissed.Store(s.shown.missed)
	if s.dead >= renewAfter {
		return s.renew()
	}
	return nil
}

// writeImage writes the image, which shows the moment at, to disk and returns its
// size. Keys that have expired meanwhile leave the image here.
func (s *Store) writeImage(at time.Time) (int64, error) {
	before := len(s.image)
	maps.DeleteFunc(s.image, func(_ string, r record) bool {
		return r.expires != 0 && r.expires <= at.UnixMilli()
	})
	s.dead += before - len(s.image)
	keys := slices.Sorted(maps.Keys(s.image)) // so that equal stores give equal files
	size, sum := int64(0), uint32(0)
	for _, key := range keys {
		size += int64(len(s.image[key].encoded))
		sum = crc32.Update(sum, castagnoli, s.image[key].encoded)
	}
	return size, replaceFile(s.opts.Snapshot, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, headerForm, at.UnixMilli(), s.shown.logged, len(keys), size, sum); err != nil {
			return err
		}
		for _, key := range keys {
			if _, err := w.Write(s.image[key].encoded); err != nil {
				return err
			}
		}
		return nil
	})
}

// saveRegularly takes a snapshot every interval until the store stops; one in
// which nothing changed costs no writing. A row of failures is logged once, and its
// end too.
func (s *Store) saveRegularly() {
	ticker := time.NewTicker(s.opts.Interval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
		}
		switch err := s.Save(context.Background()); {
		case err != nil && !failing:
			failing = true
			s.logger.Error("The embedded Redis is not being saved: free the disk or repair the folder; it is tried again", "error", err)
		case err == nil && failing:
			failing = false
			s.logger.Info("The embedded Redis is saved again")
		}
	}
}

// load fills the empty store from disk.
func (s *Store) load(now time.Time) error {
	path, before := s.opts.Snapshot, s.opts.Snapshot+".1"
	if path == "" {
		return nil
	}
	err := s.loadFile(path, now)
	if err == nil {
		return nil
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if !missing && !errors.Is(err, errDamaged) {
		return fmt.Errorf("cannot read the snapshot %s: %w", path, err)
	}
	errBefore := s.loadFile(before, now)
	switch {
	case missing && errors.Is(errBefore, fs.ErrNotExist):
		return nil // a first start
	case errBefore != nil:
		return fmt.Errorf("cannot use the snapshot %s (%w) nor the one before it, %s (%w): put a copy back, "+
			"or move both away to begin with an empty Redis", path, err, before, errBefore)
	case missing:
		return nil // stopped between two renames
	}
	aside := path + ".damaged"
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("cannot put the damaged snapshot aside: %w", err)
	}
	s.logger.Error("The snapshot of the embedded Redis is damaged: going on with the one before it",
		"snapshot", path, "kept_as", aside, "used", before, "error", err)
	return nil
}

func (s *Store) loadFile(path string, now time.Time) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line, body, _ := bytes.Cut(content, []byte{'\n'})
	var at, logged int64
	var keys, size int
	var sum uint32
	_, err = fmt.Sscanf(string(line)+"\n", headerForm, &at, &logged, &keys, &size, &sum)
	if err != nil {
		_, err = fmt.Sscanf(string(line)+"\n", headerForm1, &at, &keys, &size, &sum)
	}
	if err != nil {
		return fmt.Errorf("%w: its first line is not that of a snapshot", errDamaged)
	}
	if size != len(body) || sum != crc32.Checksum(body, castagnoli) {
		return fmt.Errorf("%w: its checksum or length is wrong", errDamaged)
	}
	image, err := restore(s.mini, body, keys, now)
	if err != nil {
		s.mini.FlushAll()
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	s.image = image
	s.extent.logged = logged
	s.shown = s.extent
	s.stats.savedAt.Store(time.UnixMilli(at).UnixNano())
	s.stats.bytes.Store(int64(size))
	s.stats.keys.Store(int64(len(s.image)))
	return nil
}

// replaceFile writes a file whole or not at all, keeping the former one as .1.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	fresh := path + ".new"
	file, err := os.OpenFile(fresh, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(file, 256<<10)
	err = errors.Join(write(buffered), buffered.Flush(), file.Sync())
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes renames last.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
