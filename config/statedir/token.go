package statedir

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tokenBytes is the randomness of a token: 256 bit cannot be guessed, and its
// hash needs no salt.
const tokenBytes = 32

// token reads the token in file, or makes one when there is no such file.
func (d *Dir) token(file, prefix string) (string, error) {
	path := filepath.Join(d.path, file)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d.makeToken(path, prefix)
	}
	if err != nil {
		return "", err
	}
	token := strings.TrimSuffix(string(text), "\n")
	if !wellFormed(token, prefix) {
		return "", fmt.Errorf("%s does not hold a token: delete it to have a new one made", file)
	}
	return token, nil
}

// wellFormed tells whether a token could be one of makeToken's.
func wellFormed(token, prefix string) bool {
	random, ok := strings.CutPrefix(token, prefix)
	if !ok {
		return false
	}
	bytes, err := base64.RawURLEncoding.Strict().DecodeString(random)
	return err == nil && len(bytes) == tokenBytes
}

// makeToken writes a new token under a temporary name, syncs it and renames it,
// so that path never holds half a token, and a token that was shown to someone
// survives a crash of the machine.
func (d *Dir) makeToken(path, prefix string) (string, error) {
	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // as documented it never fails
	token := prefix + base64.RawURLEncoding.EncodeToString(random)

	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err // left by a crash
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(token + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return "", fmt.Errorf("cannot make %s: %w", filepath.Base(path), err)
	}
	return token, nil
}

// sync makes the folder's names durable.
func (d *Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
