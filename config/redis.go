package config

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Redis says which Redis is shared. Without URL and Addresses it is embedded.
type Redis struct {
	Mode      string   `yaml:"mode" jsonschema:"enum=single,enum=sentinel,enum=cluster" jsonschema_description:"Left out: single for one address, sentinel with master, else cluster."`
	URL       string   `yaml:"url" jsonschema_description:"redis://host:port/db, rediss://…, unix:///path, embedded, or env:NAME / file:PATH of such a URL. No password in it."`
	Addresses []string `yaml:"addresses" jsonschema_description:"host:port of the nodes, instead of url."`
	Master    string   `yaml:"master" jsonschema_description:"Name of the master that the sentinels watch."`
	Username  string   `yaml:"username"`
	Password  Ref      `yaml:"password" jsonschema_description:"env:NAME or file:PATH."`
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

// Topology is the mode that the section asks for, said or implied.
func (r Redis) Topology() RedisMode {
	switch {
	case r.URL == "embedded", r.URL == "" && len(r.Addresses) == 0:
		return RedisEmbedded
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

// URLRef gives the reference under which the URL is kept, when the section does
// not hold the URL itself. The text behind it may contain a password.
func (r Redis) URLRef() (Ref, bool) {
	if strings.HasPrefix(r.URL, "env:") || strings.HasPrefix(r.URL, "file:") {
		return Ref(r.URL), true
	}
	return "", false
}

var redisPrefix = regexp.MustCompile(`^[a-z0-9_-]+$`)

const redisURLAllowed = "redis://host:port/db, rediss://host:port/db, unix:///path, embedded, or env:NAME"

func (v *validator) redis(r Redis) {
	v.redisURL(r)
	for i, a := range r.Addresses {
		v.hostPort(fmt.Sprintf("redis.addresses[%d]", i), a)
	}
	if r.URL != "" && len(r.Addresses) > 0 {
		v.fault("redis.addresses", "stands beside redis.url", "one of the two")
	}
	topology := r.Topology()
	if topology == RedisEmbedded {
		for path, set := range map[string]bool{
			"redis.mode": r.Mode != "", "redis.master": r.Master != "",
			"redis.username": r.Username != "", "redis.password": r.Password != "",
		} {
			if set {
				v.fault(path, "has no meaning for the embedded Redis", "give redis.url or redis.addresses too, or leave it out")
			}
		}
	} else if (topology == RedisSentinel) != (r.Master != "") {
		v.fault("redis.master", "does not go with mode "+string(topology), "the name of the master with mode sentinel, and only there")
	}
	if topology == RedisSingle && len(r.Addresses) > 1 {
		v.fault("redis.addresses", "holds several addresses", "one address with mode single")
	}
	if !redisPrefix.MatchString(r.Prefix) {
		v.fault("redis.prefix", quoted(r.Prefix)+" is no prefix", "letters a-z, digits, _ and -")
	}
	if r.Listen != "off" {
		v.hostPort("redis.listen", r.Listen)
	}
}

// redisURL judges the URL alone. It never repeats it: a password may be in it.
func (v *validator) redisURL(r Redis) {
	if ref, ok := r.URLRef(); ok {
		if err := new(Ref).UnmarshalText([]byte(ref)); err != nil {
			v.wrong("redis.url", err)
		}
		return
	}
	if r.URL == "" || r.URL == "embedded" {
		return
	}
	u, err := url.Parse(r.URL)
	switch {
	case err != nil:
		v.fault("redis.url", "is not a URL", redisURLAllowed)
	case u.Scheme != "redis" && u.Scheme != "rediss" && u.Scheme != "unix":
		v.fault("redis.url", "has another scheme than redis, rediss or unix", redisURLAllowed)
	case hasPassword(u):
		v.fault("redis.url", "holds a password in the clear", "redis.password: env:NAME or file:PATH, or the whole URL as env:NAME")
	case u.Scheme == "unix" && u.Path == "", u.Scheme != "unix" && u.Host == "":
		v.fault("redis.url", "names no server", redisURLAllowed)
	}
}

// hasPassword finds a password in both places where Redis URLs carry one.
func hasPassword(u *url.URL) bool {
	_, inUser := u.User.Password()
	return inUser || u.Query().Has("password")
}
