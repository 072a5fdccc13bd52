package redisdb

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb/embedded"
)

// Mode names the kind of Redis behind a DB, in the config's words.
type Mode string

// The modes. An empty Mode is found from the rest of the Options.
const (
	Embedded Mode = "embedded" // inside this process
	Single   Mode = "single"   // one server
	Sentinel Mode = "sentinel" // a master that sentinels name
	Cluster  Mode = "cluster"  // a Redis Cluster
)

// Options say which Redis to use. The zero Options mean the embedded one,
// keeping nothing and listening nowhere.
type Options struct {
	// Mode may stay empty: without URL and Addresses it is embedded, with Master
	// sentinel, with several addresses cluster, else single.
	Mode Mode
	// URL is "embedded" or redis[s]://[user[:password]@]host[:port][,host[:port]…][/db][?master=NAME&mode=MODE],
	// or unix:///path. rediss means TLS, verified against the system's roots, to
	// every node. Sentinels that ask for a login of their own are given
	// sentinel_username and sentinel_password, after ? as well. It is a secret
	// because a URL that comes from the environment may carry passwords.
	URL credential.Secret
	// Addresses are host:port of the servers, the sentinels or the cluster's
	// nodes. Give these or URL.
	Addresses []string
	// Master is the name under which sentinels know the master.
	Master string
	// Username and Password log in to the data servers, not to sentinels. They
	// win over the URL's.
	Username string
	Password credential.Secret
	// Prefix is the first part of every key; only the probe's key is made here.
	// Empty means "authpool".
	Prefix string
	// Embedded says where the embedded Redis keeps its snapshot and listens for
	// readers. It is ignored in the other modes.
	Embedded embedded.Options
	// Logger receives one line per change of health. Nil means slog.Default().
	Logger *slog.Logger
}

// Time-outs and sizes of the client. Callers on the request path bring their
// own deadline of 50 ms; these bound everybody else.
const (
	dialTimeout  = time.Second
	readTimeout  = 2 * time.Second
	writeTimeout = 2 * time.Second
	poolTimeout  = time.Second
	poolSize     = 32
	idleTimeout  = 5 * time.Minute
)

// plan is Options understood: what to connect to.
type plan struct {
	mode     Mode
	addrs    []string
	master   string
	db       int
	username string
	password string
	tls      bool

	sentinelUsername, sentinelPassword string
}

// Check returns the fault for which Open would refuse the options, before it has
// opened anything.
func (o Options) Check() error {
	_, err := o.plan()
	return err
}

// plan checks the options. Its errors name config keys and never repeat a URL.
func (o Options) plan() (plan, error) {
	p := plan{mode: o.Mode, addrs: o.Addresses, master: o.Master}
	switch {
	case o.URL.Reveal() == string(Embedded):
		if p.mode == "" {
			p.mode = Embedded
		}
	case !o.URL.Empty():
		if len(o.Addresses) > 0 {
			return plan{}, errors.New("redis.url and redis.addresses are both set: give one of the two")
		}
		if err := p.readURL(o.URL.Reveal()); err != nil {
			return plan{}, err
		}
	}
	if o.Username != "" {
		p.username = o.Username
	}
	if !o.Password.Empty() {
		p.password = o.Password.Reveal()
	}
	if p.mode == "" {
		p.mode = p.impliedMode()
	}
	return p, p.check()
}

func (p plan) impliedMode() Mode {
	switch {
	case len(p.addrs) == 0:
		return Embedded
	case p.master != "":
		return Sentinel
	case len(p.addrs) > 1:
		return Cluster
	default:
		return Single
	}
}

// place is a digest of where the keys are: an address may carry what is not for others.
func (p plan) place(prefix string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %q", p.mode, slices.Sorted(slices.Values(p.addrs)), p.master, p.db, prefix))
	return hex.EncodeToString(sum[:16])
}

func (p plan) check() error {
	if !slices.Contains([]Mode{Embedded, Single, Sentinel, Cluster}, p.mode) {
		return fmt.Errorf("redis.mode: %q is unknown: use single, sentinel or cluster, or leave redis.url out for the embedded one", p.mode)
	}
	if p.mode == Embedded {
		if len(p.addrs) > 0 || p.master != "" || p.username != "" || p.password != "" {
			return errors.New("redis.mode: embedded goes with no address, master, username or password")
		}
		return nil
	}
	if len(p.addrs) == 0 {
		return fmt.Errorf("redis.mode: %s needs redis.url or redis.addresses", p.mode)
	}
	for _, addr := range p.addrs {
		if !isUnix(addr) {
			if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
				return errors.New("redis.addresses: an entry is not host:port")
			}
		} else if p.mode != Single {
			return errors.New("redis.url: a unix socket goes with mode single only")
		}
	}
	switch {
	case p.mode == Sentinel && p.master == "":
		return errors.New("redis.master: mode sentinel needs the name of the master")
	case p.mode != Sentinel && p.master != "":
		return fmt.Errorf("redis.master: has no meaning in mode %s", p.mode)
	case p.mode != Sentinel && p.sentinelUsername+p.sentinelPassword != "":
		return fmt.Errorf("redis.url: a login for sentinels has no meaning in mode %s", p.mode)
	case p.mode == Single && len(p.addrs) > 1:
		return errors.New("redis.addresses: mode single takes one address")
	case p.mode == Cluster && p.db != 0:
		return errors.New("redis.url: a cluster has only database 0")
	}
	return nil
}

// universal turns the plan into the client's options. The settings that differ
// from the library's defaults are the ones that keep a silent or dead Redis from
// holding anybody up:
//   - without ContextTimeoutEnabled a deadline of 50 ms waits 5 s for a Redis
//     that accepts and never answers;
//   - retries multiply every wait, and scripts are repeated by their callers, who
//     know the request id that makes them idempotent;
//   - a dial is tried five times, 100 ms apart, unless told otherwise.
//
// RESP2 and no maintenance notifications keep the connection plain, and the same
// in the embedded mode.
func (p plan) universal() *redis.UniversalOptions {
	u := &redis.UniversalOptions{
		Addrs:                    p.addrs,
		MasterName:               p.master,
		IsClusterMode:            p.mode == Cluster,
		DB:                       p.db,
		Username:                 p.username,
		Password:                 p.password,
		SentinelUsername:         p.sentinelUsername,
		SentinelPassword:         p.sentinelPassword,
		Protocol:                 2,
		MaxRetries:               -1,
		DialerRetries:            1,
		DialTimeout:              dialTimeout,
		ReadTimeout:              readTimeout,
		WriteTimeout:             writeTimeout,
		PoolTimeout:              poolTimeout,
		PoolSize:                 poolSize,
		ConnMaxIdleTime:          idleTimeout,
		ContextTimeoutEnabled:    true,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if p.tls {
		u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return u
}
