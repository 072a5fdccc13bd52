package config

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Redis says which Redis is shared. Without URL and Addresses it is embedded.
type Redis struct {
	Mode      string   `yaml:"mode" jsonschema:"enum=single,enum=sentinel,enum=cluster" jsonschema_description:"Left out: what the URL says, else single for one address, sentinel with master, else cluster."`
	URL       string   `yaml:"url" jsonschema_description:"redis://host:port[,host:port…]/db[?master=NAME or ?mode=cluster], rediss://…, unix:///path, embedded, or env:NAME / file:PATH of such a URL. No password in it."`
	Addresses []string `yaml:"addresses" jsonschema_description:"host:port of the nodes, instead of url."`
	Master    string   `yaml:"master" jsonschema_description:"Name of the master that the sentinels watch."`
	Username  string   `yaml:"username"`
	Password  Ref      `yaml:"password" jsonschema_description:"env:NAME, file:PATH or exec:/PROGRAM ARG…."`
	Prefix    string   `yaml:"prefix" jsonschema:"pattern=^[a-z0-9_-]+$" jsonschema_description:"First part of every key."`
	Listen    string   `yaml:"listen" jsonschema_description:"host:port where people read the embedded Redis, or off."`
}

// RedisMode names the topology behind a Redis section.
type RedisMode string

// The modes of a Redis section.
const (
	RedisEmbedded RedisMode = "embedded"
	RedisSingle   RedisMode = "single"
	RedisSentinel RedisMode = "sentinel"
	RedisCluster  RedisMode = "cluster"
)

// Topology is the mode that the section asks for, said or implied, by the URL too
// unless that is a reference.
func (r Redis) Topology() RedisMode {
	if r.URL == "embedded" || r.URL == "" && len(r.Addresses) == 0 {
		return RedisEmbedded
	}
	u, _ := parseRedisURL(r.URL) // Validate tells what is wrong
	return r.with(u).topology()
}

// topology is that of a section that is not embedded and has taken over what its URL
// says.
func (r Redis) topology() RedisMode {
	switch {
	case r.Mode != "":
		return RedisMode(r.Mode)
	case r.Master != "":
		return RedisSentinel
	case len(r.Addresses) > 1:
		return RedisCluster
	default:
		return RedisSingle
	}
}

// with returns the section with what the URL says in the place of the URL.
func (r Redis) with(u redisURL) Redis {
	r.Addresses = slices.Concat(r.Addresses, u.hosts)
	r.Mode, r.Master = cmp.Or(r.Mode, u.mode), cmp.Or(r.Master, u.master)
	return r
}

// URLRef gives the reference under which the URL is kept, when the section does
// not hold the URL itself. The text behind it may contain a password.
func (r Redis) URLRef() (Ref, bool) {
	if strings.HasPrefix(r.URL, "env:") || strings.HasPrefix(r.URL, "file:") {
		return Ref(r.URL), true
	}
	return "", false
}

var redisPrefix = regexp.MustCompile(`^[a-z0-9_-]+$`)

const redisURLAllowed = "redis://host:port[,host:port…]/db, with ?master=NAME for sentinels or ?mode=cluster; rediss:// for TLS, unix:///path, embedded, or env:NAME"

func (v *validator) redis(r Redis) {
	u := v.redisURL(r)
	for i, a := range r.Addresses {
		v.hostPort(fmt.Sprintf("redis.addresses[%d]", i), a)
	}
	if r.URL != "" && len(r.Addresses) > 0 {
		v.fault("redis.addresses", "stands beside redis.url", "one of the two")
	}
	if r.Topology() == RedisEmbedded {
		for path, set := range map[string]bool{
			"redis.mode": r.Mode != "", "redis.master": r.Master != "",
			"redis.username": r.Username != "", "redis.password": r.Password != "",
		} {
			if set {
				v.fault(path, "has no meaning for the embedded Redis", "give redis.url or redis.addresses too, or leave it out")
			}
		}
	} else if _, later := r.URLRef(); !later {
		v.redisTopology(r, u)
	}
	if !redisPrefix.MatchString(r.Prefix) {
		v.fault("redis.prefix", quoted(r.Prefix)+" is no prefix", "letters a-z, digits, _ and -")
	}
	if r.Listen != "off" {
		v.hostPort("redis.listen", r.Listen)
	}
}

// redisTopology judges whether mode, master and addresses go together, wherever each
// of them was said.
func (v *validator) redisTopology(r Redis, u redisURL) {
	from := func(url bool, path string) string {
		if url {
			return "redis.url"
		}
		return path
	}
	if r.Mode != "" && u.mode != "" && r.Mode != u.mode {
		v.fault("redis.mode", "differs from the mode in redis.url", "one of the two")
	}
	if r.Master != "" && u.master != "" && r.Master != u.master {
		v.fault("redis.master", "differs from the master in redis.url", "one of the two")
	}
	whole := r.with(u)
	topology := whole.topology()
	if (topology == RedisSentinel) != (whole.Master != "") {
		v.fault(from(u.mode != "" || u.master != "", "redis.master"), "does not go with mode "+string(topology),
			"the name of the master with mode sentinel, and only there")
	}
	if topology == RedisSingle && len(whole.Addresses) > 1 {
		v.fault(from(len(u.hosts) > 0, "redis.addresses"), "holds several addresses", "one address with mode single")
	}
	if topology != RedisSentinel && u.login {
		v.fault("redis.url", "has a login for sentinels", "one with mode sentinel only")
	}
	if topology == RedisCluster && u.db {
		v.fault("redis.url", "names a database", "none, as a cluster has only database 0")
	}
	if topology != RedisSingle && u.unix {
		v.fault("redis.url", "is a unix socket", "a unix socket with mode single only")
	}
}

// redisURL judges the URL alone and returns what it says. It never repeats it: a
// password may be in it.
func (v *validator) redisURL(r Redis) redisURL {
	if ref, ok := r.URLRef(); ok {
		if err := new(Ref).UnmarshalText([]byte(ref)); err != nil {
			v.wrong("redis.url", err)
		}
		return redisURL{}
	}
	u, problem := parseRedisURL(r.URL)
	switch {
	case u.password:
		v.fault("redis.url", "holds a password in the clear", "redis.password: env:NAME, file:PATH or exec:/PROGRAM ARG…, or the whole URL as env:NAME")
	case problem != "":
		v.fault("redis.url", problem, redisURLAllowed)
	}
	return u
}

// redisURL is what the URL of a Redis says. The client that opens it reads it by the
// same rules (package redisdb, which this one may not import; a test of cmd/authpool
// compares the two).
type redisURL struct {
	hosts        []string // one, the socket's path, with unix
	mode, master string
	unix         bool
	db           bool // another database than 0
	login        bool // for sentinels
	password     bool
}

// parseRedisURL reads a URL of the forms in redisURLAllowed, and says what is wrong
// with it; nothing is with the empty one and "embedded".
func parseRedisURL(text string) (u redisURL, problem string) {
	if text == "" || text == "embedded" || strings.HasPrefix(text, "env:") || strings.HasPrefix(text, "file:") {
		return redisURL{}, ""
	}
	scheme, rest, ok := strings.Cut(text, "://")
	rest, queryText, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	user := ""
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, authority = authority[:at], authority[at+1:]
	}
	query, err := url.ParseQuery(queryText)
	u.unix = scheme == "unix"
	u.mode, u.master = query.Get("mode"), query.Get("master")
	u.login = query.Get("sentinel_username")+query.Get("sentinel_password") != ""
	u.password = strings.Contains(user, ":") || query.Has("password") || query.Has("sentinel_password")
	if u.unix {
		u.hosts = []string{rest}
	} else {
		u.hosts = strings.Split(authority, ",")
	}
	switch {
	case !ok:
		return redisURL{}, "is not a URL"
	case scheme != "redis" && scheme != "rediss" && scheme != "unix":
		return redisURL{password: u.password}, "has another scheme than redis, rediss or unix"
	case err != nil:
		return u, "cannot be read after ?"
	case u.unix && !strings.HasPrefix(rest, "/"), !u.unix && authority == "":
		return u, "names no server"
	}
	for name, values := range query {
		switch {
		case !slices.Contains(redisParameters, name):
			return u, "says after ? what is not understood"
		case len(values) != 1:
			return u, "gives " + name + " more than once"
		}
	}
	if u.mode != "" && !slices.Contains([]RedisMode{RedisSingle, RedisSentinel, RedisCluster}, RedisMode(u.mode)) {
		return u, "names an unknown mode"
	}
	if u.unix {
		return u, ""
	}
	if _, err := url.PathUnescape(user); err != nil {
		return u, "has a user name that is not percent-encoded rightly"
	}
	if path != "" {
		db, err := strconv.ParseUint(path, 10, 16)
		if err != nil {
			return u, "has a path that is no database number"
		}
		u.db = db != 0
	}
	for _, host := range u.hosts {
		if !isRedisHost(host) {
			return u, "has a host that is not host:port"
		}
	}
	return u, ""
}

// redisParameters are what a URL may say after its question mark.
var redisParameters = []string{"master", "mode", "sentinel_username", "sentinel_password"}

// isRedisHost tells whether text is a host of a URL, with or without its port.
func isRedisHost(text string) bool {
	if host, port, err := net.SplitHostPort(text); err == nil {
		return host != "" && port != "" && portInRange(port)
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	return bare != "" && (len(bare) == len(text)-2 || !strings.Contains(text, ":"))
}
