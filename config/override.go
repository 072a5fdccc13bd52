package config

import (
	"fmt"
	"strings"
)

// EnvName is the variable that stands for a flag: state-dir → AUTHPOOL_STATE_DIR.
// Everywhere a flag wins over its variable, that over the file, and that over
// the default.
func EnvName(flag string) string {
	return "AUTHPOOL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Override replaces what the file says by the text of a flag or variable, which
// origin names ("--listen", "$AUTHPOOL_LISTEN") for later faults. The flags are
// listen (a comma separates several addresses), admin, redis and state-dir. Call
// Validate afterwards.
func (c *Config) Override(flag, origin, text string) {
	var path string
	switch flag {
	case "listen":
		path, c.Listen = "listen", strings.Split(text, ",")
	case "admin":
		path, c.Admin.Listen = "admin.listen", text
	case "redis":
		// Another server: how the file's one is built says nothing about it.
		path, c.Redis.URL = "redis.url", text
		c.Redis.Mode, c.Redis.Master, c.Redis.Addresses = "", "", nil
		if c.Redis.Topology() == RedisEmbedded {
			c.Redis.Username, c.Redis.Password = "", ""
		}
	case "state-dir":
		path, c.StateDir = "state_dir", text
	default:
		panic(fmt.Sprintf("BUG: no config key for flag %q", flag))
	}
	for p := range c.origin.places {
		if within(p, path) {
			delete(c.origin.places, p)
		}
	}
	if c.origin.places == nil {
		c.origin.places = map[string]place{}
	}
	c.origin.places[path] = place{origin: origin}
}
