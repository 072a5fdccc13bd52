package redisdb

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const defaultPort = "6379"

// defaultSentinelPort is where sentinels listen unless told otherwise.
const defaultSentinelPort = "26379"

// readURL fills the plan from a URL of the form that Options.URL documents. The
// client library's own parser takes neither several hosts nor ?master=. No error
// repeats the URL, because a password may be in it.
func (p *plan) readURL(text string) error {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return errors.New("redis.url: is no URL: use redis://host:port, rediss://host:port, unix:///path or embedded")
	}
	switch scheme {
	case "redis":
	case "rediss":
		p.tls = true
	case "unix":
		return p.readUnix(rest)
	default:
		return errors.New("redis.url: the scheme is not redis, rediss or unix")
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		if err := p.readUser(authority[:at]); err != nil {
			return err
		}
		authority = authority[at+1:]
	}
	if err := p.readQuery(query); err != nil {
		return err
	}
	if path != "" {
		db, err := strconv.ParseUint(path, 10, 16)
		if err != nil {
			return errors.New("redis.url: the path is no database number")
		}
		p.db = int(db)
	}
	port := defaultPort
	if p.master != "" || p.mode == Sentinel {
		port = defaultSentinelPort
	}
	p.addrs = nil
	for host := range strings.SplitSeq(authority, ",") {
		addr, err := withPort(host, port)
		if err != nil {
			return err
		}
		p.addrs = append(p.addrs, addr)
	}
	return nil
}

func (p *plan) readUnix(rest string) error {
	path, query, _ := strings.Cut(rest, "?")
	if !isUnix(path) {
		return errors.New("redis.url: unix:// needs an absolute path, as in unix:///run/redis.sock")
	}
	p.addrs = []string{path}
	return p.readQuery(query)
}

func (p *plan) readUser(text string) error {
	user, password, _ := strings.Cut(text, ":")
	var err error
	if p.username, err = url.PathUnescape(user); err == nil {
		p.password, err = url.PathUnescape(password)
	}
	if err != nil {
		return errors.New("redis.url: user name or password is not percent-encoded rightly")
	}
	return nil
}

func (p *plan) readQuery(text string) error {
	query, err := url.ParseQuery(text)
	if err != nil {
		return errors.New("redis.url: the part after ? cannot be read")
	}
	for name, values := range query {
		switch {
		case len(values) != 1:
			return fmt.Errorf("redis.url: %q is given more than once", name)
		case name == "master":
			if p.master != "" && p.master != values[0] {
				return errors.New("redis.master: differs from the master in redis.url")
			}
			p.master = values[0]
		case name == "mode":
			if p.mode != "" && p.mode != Mode(values[0]) {
				return errors.New("redis.mode: differs from the mode in redis.url")
			}
			p.mode = Mode(values[0])
		case name == "sentinel_username":
			p.sentinelUsername = values[0]
		case name == "sentinel_password":
			p.sentinelPassword = values[0]
		default:
			return errors.New("redis.url: after ? only master, mode, sentinel_username and sentinel_password are understood")
		}
	}
	return nil
}

// withPort completes one host of a URL.
func withPort(host, port string) (string, error) {
	if host == "" {
		return "", errors.New("redis.url: names no server")
	}
	if name, number, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(number, 10, 16); err != nil || name == "" {
			return "", errors.New("redis.url: a host is not host:port")
		}
		return host, nil
	}
	addr := net.JoinHostPort(strings.Trim(host, "[]"), port)
	if strings.Count(host, ":") > 0 && !strings.HasPrefix(host, "[") {
		return "", errors.New("redis.url: a host is not host:port; write IPv6 as [::1]:6379")
	}
	return addr, nil
}

// isUnix tells a socket's path from host:port.
func isUnix(addr string) bool { return strings.HasPrefix(addr, "/") }
