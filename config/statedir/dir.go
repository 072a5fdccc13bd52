package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Dir is an open state folder. Its secrets do not change while it is open.
type Dir struct {
	path  string
	lock  *os.File
	notes []string

	agentToken, adminToken, viewerToken, redisPassword string
}

// Open makes the folder if it is not there, locks it for this process, closes it
// to other users, and makes the tokens that are missing. Close releases it.
//
// It fails with an error that names the folder when another process holds it,
// when it is another user's, or when a token file is damaged.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open state folder: %w", err)
	}
	d := &Dir{path: path}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use state folder %s: %w", path, err), d.Close())
	}
	return d, nil
}

func (d *Dir) open() error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("%w: name another folder by --state-dir or the key state_dir", err)
	}
	if info, err := os.Stat(d.path); err == nil && info.Mode()&fs.ModeSticky != 0 {
		// To close /tmp to others would break every other program.
		return errors.New("it is one that all users share: name a folder of your own, such as one inside of it")
	}
	if err := d.closeToOthers(d.path, 0o700); err != nil {
		return err
	}
	lock, err := acquire(filepath.Join(d.path, "lock"))
	if err != nil {
		return err
	}
	d.lock = lock
	for _, secret := range []struct {
		file, prefix string
		text         *string
	}{
		{AgentTokenFile, "apa_", &d.agentToken},
		{AdminTokenFile, "apo_", &d.adminToken},
		{ViewerTokenFile, "apo_", &d.viewerToken},
		{RedisPasswordFile, "", &d.redisPassword},
	} {
		if err := d.closeToOthers(filepath.Join(d.path, secret.file), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if *secret.text, err = d.token(secret.file, secret.prefix); err != nil {
			return err
		}
	}
	return nil
}

// closeToOthers takes the rights of group and others away. A mounted volume may
// come with them at every start (Kubernetes' fsGroup), so that is repaired and
// noted, and only an error when it cannot be.
func (d *Dir) closeToOthers(path string, mode fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	open := info.Mode().Perm()
	if open&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("other users can read it (mode %04o), and that cannot be changed: %w; name a folder of your own, such as one inside of it", open, err)
	}
	d.notes = append(d.notes, fmt.Sprintf("%s could be read by other users (mode %04o), now it is %04o; if one may have looked, delete the tokens in the folder to have new ones made", path, open, mode))
	return nil
}

// Path is the folder, absolute.
func (d *Dir) Path() string { return d.path }

// Notes are sentences for the log about what Open had to repair.
func (d *Dir) Notes() []string { return d.notes }

// AgentToken is the token of the agent called default; a secret.
func (d *Dir) AgentToken() string { return d.agentToken }

// AdminToken is the token of the admin API; a secret.
func (d *Dir) AdminToken() string { return d.adminToken }

// ViewerToken is the token of who may only read the admin API; a secret.
func (d *Dir) ViewerToken() string { return d.viewerToken }

// RedisPassword is the password of the embedded Redis' front; a secret.
func (d *Dir) RedisPassword() string { return d.redisPassword }

// Close releases the folder. A second call does nothing.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	lock := d.lock
	d.lock = nil
	if err := lock.Close(); err != nil {
		return fmt.Errorf("cannot release state folder %s: %w", d.path, err)
	}
	return nil
}
