// Package egress opens authpool's own connections to providers: directly, or through
// the forward proxy by which a company's machines reach the world, and knows whose
// certificates are trusted then.
//
// Through a proxy every connection is a CONNECT tunnel (RFC 9110 9.3.6), so that the
// proxy sees host and port and, with an https:// provider, nothing else.
package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/authpool/authpool/pool/credential"
)

// Options say how providers are reached.
type Options struct {
	Proxy    string            // http:// or https:// URL of a forward proxy; empty: none
	Username string            // for the proxy; empty: it asks for none
	Password credential.Secret // for the proxy
	// NoProxy are the hosts that are reached directly, as NO_PROXY has them: names, with
	// their subdomains, addresses, networks in CIDR form, each perhaps with a port; * is
	// all. Loopback addresses and localhost always are.
	NoProxy []string
	Connect time.Duration  // bounds the dial, and the talk with the proxy
	RootCAs *x509.CertPool // by which an https:// proxy is verified; nil: the system's
}

// Dialer opens connections. It is safe for concurrent use.
type Dialer struct {
	direct  net.Dialer
	connect time.Duration
	through func(*url.URL) (*url.URL, error) // nil: nothing goes through a proxy
	proxy   string                           // host:port
	tls     *tls.Config                      // to the proxy; nil: none
	auth    string                           // the value of Proxy-Authorization, empty: none
}

// New returns a Dialer. An error is about the proxy's URL.
func New(o Options) (*Dialer, error) {
	d := &Dialer{
		direct: net.Dialer{
			Timeout:         o.Connect,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4},
		},
		connect: o.Connect,
	}
	if o.Proxy == "" {
		return d, nil
	}
	u, err := url.Parse(o.Proxy)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the proxy's URL is not http://HOST:PORT or https://HOST:PORT")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	d.proxy = net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "https" {
		d.tls = &tls.Config{
			ServerName: u.Hostname(), RootCAs: o.RootCAs, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(32),
		}
	}
	if o.Username != "" || !o.Password.Empty() {
		d.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(o.Username+":"+o.Password.Reveal()))
	}
	rules := httpproxy.Config{HTTPSProxy: o.Proxy, NoProxy: strings.Join(o.NoProxy, ",")}
	d.through = rules.ProxyFunc()
	return d, nil
}

// Dial opens a connection to host:port; it stops when ctx ends.
func (d *Dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if !d.Proxied(addr) {
		return d.direct.DialContext(ctx, "tcp", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, d.connect)
	defer cancel()
	c, err := d.direct.DialContext(ctx, "tcp", d.proxy)
	if err != nil {
		return nil, fmt.Errorf("by the egress proxy: %w", err)
	}
	through, err := d.tunnel(ctx, c, addr)
	if err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("by the egress proxy %s: %w", d.proxy, err)
	}
	return through, nil
}

// Proxied tells whether host:port is reached through the proxy.
func (d *Dialer) Proxied(addr string) bool {
	if d.through == nil {
		return false
	}
	proxy, err := d.through(&url.URL{Scheme: "https", Host: addr})
	return err == nil && proxy != nil // an error is about the proxy's URL, which New has read
}

// tunnel asks the proxy behind c for a connection to addr.
func (d *Dialer) tunnel(ctx context.Context, c net.Conn, addr string) (net.Conn, error) {
	if d.tls != nil {
		secure := tls.Client(c, d.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = secure
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	head := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\n"
	if d.auth != "" {
		head += "Proxy-Authorization: " + d.auth + "\r\n"
	}
	if _, err := c.Write([]byte(head + "\r\n")); err != nil {
		stop()
		return nil, err
	}
	status, err := readHead(c)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	switch {
	case err != nil:
		return nil, err
	case status == 407:
		return nil, errors.New("it wants a user: set egress.username and egress.password")
	case status < 200 || status > 299:
		return nil, fmt.Errorf("it answers %d: does it allow CONNECT to %s?", status, addr)
	}
	return c, nil
}

// maxHead bounds what a proxy says before the tunnel.
const maxHead = 16 << 10

var errNoHTTP = errors.New("it does not answer like an HTTP proxy")

// readHead reads an answer's head, byte by byte: what comes behind it is the
// provider's already.
func readHead(c net.Conn) (status int, err error) {
	var head []byte
	var one [1]byte
	for !strings.HasSuffix(string(head[max(0, len(head)-4):]), "\r\n\r\n") {
		if len(head) == maxHead {
			return 0, errNoHTTP
		}
		if _, err := c.Read(one[:]); err != nil {
			return 0, err
		}
		head = append(head, one[0])
	}
	if _, err := fmt.Sscanf(string(head), "HTTP/1.%1d %3d", new(int), &status); err != nil {
		return 0, errNoHTTP
	}
	return status, nil
}

// RootCAs are the system's certificate authorities and those of a PEM file; nil for
// no file, which means the system's alone.
func RootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("cannot read the system's certificate authorities: %w", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificate authorities: %w", err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}
