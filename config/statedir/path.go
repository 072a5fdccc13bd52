// Package statedir owns the state folder: where it is, who may use it, and the
// tokens that are made with it. Journal and snapshot live in the same folder but
// belong to their own packages.
//
// A serve calls Open and keeps the Dir until it ends; the lock in it keeps a
// second process out. Other commands only need Path and the file names.
package statedir

import (
	"errors"
	"path/filepath"
)

// Files of the state folder that this package makes. Each holds one line.
const (
	AgentTokenFile    = "agent.token"    // token of the agent called default
	AdminTokenFile    = "admin.token"    // token of the admin API
	ViewerTokenFile   = "viewer.token"   // likewise, of who may only read
	RedisPasswordFile = "redis.password" // password of the embedded Redis' front
)

// ErrNoHome is returned by Path when nothing says where the folder is.
var ErrNoHome = errors.New("cannot find a place for the state folder, there is no home directory: name one by --state-dir or $AUTHPOOL_STATE_DIR")

// Path is the state folder: what the flag or the file says when that is not
// empty, else $AUTHPOOL_STATE_DIR, else $XDG_STATE_HOME/authpool, else
// ~/.local/state/authpool. As the XDG specification demands, a relative
// XDG_STATE_HOME is ignored.
func Path(configured string, getenv func(string) string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if dir := getenv("AUTHPOOL_STATE_DIR"); dir != "" {
		return dir, nil
	}
	if base := getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "authpool"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "authpool"), nil
	}
	return "", ErrNoHome
}
