package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/managed"
	"github.com/authpool/authpool/pool/seal"
)

// keysetFile is the keyset of sealed secrets in the state folder, where the config
// names no other.
const keysetFile = "sealing.keyset"

// newVaultFromConfig knows where the keyset is; it is read when it is needed. Where the
// config names none, one is made in the state folder for the first secret of records.
func newVaultFromConfig(c config.Sealing, dir *statedir.Dir, records *managed.Store) *managed.Vault {
	if path, isFile := c.Keyset.File(); isFile {
		return managed.NewVault(managed.Keys{Read: readRef(c.Keyset), Write: replaceWith(path), Lock: lockFolder(path)})
	}
	if c.Keyset != "" {
		return managed.NewVault(managed.Keys{Read: readRef(c.Keyset)})
	}
	path := filepath.Join(dir.Path(), keysetFile)
	return managed.NewVault(managed.Keys{
		Read:  readRef(config.Ref("file:" + path)),
		Write: replaceWith(path),
		Lock:  lockFolder(path),
		Make:  func(ctx context.Context) error { return makeKeyset(ctx, path, records) },
	})
}

func readRef(ref config.Ref) func(context.Context) (credential.Secret, error) {
	return func(ctx context.Context) (credential.Secret, error) { return resolve(ctx, ref) }
}

// makeKeyset makes the first keyset, unless there are secrets already: they would never
// open with it.
func makeKeyset(ctx context.Context, path string, records *managed.Store) error {
	list, err := records.List(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(list, func(r managed.Record) bool { return r.Secret != "" }); i >= 0 {
		return fmt.Errorf("subscription %s was sealed with a keyset that this process does not have: copy %s from the state folder of the serve that added it, or name it by the key sealing.keyset", list[i].ID, keysetFile)
	}
	keys, err := seal.New()
	if err != nil {
		return err
	}
	text, err := keys.Text()
	if err != nil {
		return err
	}
	if err := placeKeyset(path, text, os.Link); !errors.Is(err, fs.ErrExist) { // made meanwhile
		return err
	}
	return nil
}

// replaceWith replaces a keyset's file, behind a symbolic link too.
func replaceWith(path string) func(credential.Secret) error {
	return func(text credential.Secret) error {
		if file, err := filepath.EvalSymlinks(path); err == nil {
			path = file
		}
		return placeKeyset(path, text, os.Rename)
	}
}

// placeKeyset writes a keyset's file in one step: a crash leaves what was there or the new
// one. place is os.Rename, or os.Link where nothing may be replaced.
func placeKeyset(path string, text credential.Secret, place func(from, to string) error) error {
	fresh, err := os.CreateTemp(filepath.Dir(path), ".keyset-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(fresh.Name()) }() // of a rename it is gone
	_, err = fresh.WriteString(text.Reveal() + "\n")
	err = errors.Join(err, fresh.Sync(), fresh.Close())
	if err == nil {
		err = place(fresh.Name(), path)
	}
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// lockFolder locks the folder of a keyset against who else would write it.
func lockFolder(path string) func() (func(), error) {
	return func() (func(), error) {
		folder, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		unlock := func() { _ = folder.Close() } // ends the lock; nothing was written
		if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			unlock()
			return nil, fmt.Errorf("cannot lock %s, as another process may be rotating at this moment: %w", filepath.Dir(path), err)
		}
		return unlock, nil
	}
}
