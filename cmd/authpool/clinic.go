package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/ca"
	"github.com/authpool/authpool/proxy/explain"
)

// clinic is a whole authpool in a temporary folder in which clients are looked at. It
// needs no key and no network: the providers that it reaches are simulated, under their
// own names, by an internet of one proxy with an authority of its own.
type clinic struct {
	folder  string
	sim     *simulator.Simulator
	net     *internet
	simDone chan error
	service *service
	desk    *frontDesk
}

// clinicConfig is the config of a clinic. The address and the authority of its internet
// are put in.
const clinicConfig = `
listen: 127.0.0.1:0
admin: {listen: 127.0.0.1:0}
redis: {listen: "off"}
state_dir: state
shutdown: {grace: 1s}
egress: {proxy: "http://%s", ca_file: %q}
subscriptions:
  - {id: anthropic, provider: anthropic, credential: {value: file:key}}
  - {id: openai, provider: openai, credential: {value: file:key}}
  - {id: gemini, provider: gemini, credential: {value: file:key}}
`

// clinicKey is what the simulated providers take for a key.
const clinicKey = "sk-sim-doctor"

// openClinic starts one. The caller closes it.
func openClinic(ctx context.Context) (*clinic, error) {
	folder, err := os.MkdirTemp("", "authpool-doctor-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a temporary folder: %w", err)
	}
	c := &clinic{folder: folder}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.close(ctx))
	}
	return c, nil
}

func (c *clinic) open(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(c.folder, "key"), []byte(clinicKey+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot write a key: %w", err)
	}
	var keys []simulator.Key
	for _, provider := range []string{simulator.Anthropic, simulator.OpenAI, simulator.Gemini} {
		keys = append(keys, simulator.Key{Key: clinicKey, Provider: provider})
	}
	var err error
	if c.sim, err = simulator.New(simulator.Options{Keys: keys, Seed: 1}); err != nil {
		return err
	}
	if c.net, err = newInternet(filepath.Join(c.folder, "internet")); err != nil {
		return err
	}
	c.simDone = make(chan error, 1)
	go func() { c.simDone <- c.sim.Serve(c.net) }()
	text := fmt.Appendf(nil, clinicConfig, c.net.listener.Addr(), filepath.Join(c.folder, "internet", ca.BundleFile))
	cfg, err := config.Parse(filepath.Join(c.folder, "authpool.yaml"), text)
	if err != nil {
		return err
	}
	nothing := func(string) string { return "" } // what the shell says is for the clients
	service, err := newService(ctx, cfg, nothing, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	c.service = service
	if err := service.start(); err != nil {
		return err
	}
	c.desk, err = newFrontDesk(service.agentAddress())
	return err
}

// close ends it and removes all that it has made.
func (c *clinic) close(ctx context.Context) error {
	var errs []error
	if c.desk != nil {
		errs = append(errs, c.desk.close())
	}
	if c.service != nil {
		errs = append(errs, c.service.shutdown(context.WithoutCancel(ctx)))
	}
	if c.sim != nil {
		errs = append(errs, c.sim.Close())
	}
	if c.simDone != nil {
		errs = append(errs, <-c.simDone)
	}
	if c.net != nil {
		errs = append(errs, c.net.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.folder))...)
}

// way is how a client is to reach the clinic.
func (c *clinic) way(p *program, mode, session string) (way, error) {
	w, err := newWay(p, c.service.cfg, c.service.dir.Path(), mode, "http://"+c.desk.listener.Addr().String())
	w.session = session
	return w, err
}

// seen is what a client has done.
type seen struct {
	connections []string          // first line of each
	requests    []explain.Request // newest first
}

// look returns what was done since t.
func (c *clinic) look(t time.Time) seen {
	s := seen{connections: c.desk.since(t)}
	t = t.Truncate(time.Millisecond) // as requests have it
	for _, r := range c.service.proxy.Explained().Last(explain.Filter{Limit: 1000}) {
		if !r.Start.Before(t) {
			s.requests = append(s.requests, r)
		}
	}
	return s
}

// internet is a forward proxy behind which every host is this listener, with a
// certificate of its name.
type internet struct {
	listener    net.Listener
	authorities *ca.Authorities
	conns       chan net.Conn
	closed      chan struct{}
	closing     sync.Once
	working     sync.WaitGroup
}

func newInternet(folder string) (*internet, error) {
	authorities, err := ca.Open(folder, usualHosts)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	n := &internet{listener: l, authorities: authorities, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.working.Go(n.serve)
	return n, nil
}

func (n *internet) serve() {
	for {
		c, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.working.Go(func() { n.connect(c) })
	}
}

// connect opens a connection to the host that its CONNECT names.
func (n *internet) connect(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || req.Method != http.MethodConnect {
		_ = c.Close()
		return
	}
	host, _, _ := strings.Cut(req.Host, ":")
	leaf, err := n.authorities.Leaf(host)
	if err != nil {
		_ = c.Close()
		return
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	secured := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*leaf}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	select {
	case n.conns <- secured:
	case <-n.closed:
		_ = secured.Close()
	}
}

// Accept implements net.Listener.
func (n *internet) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (n *internet) Addr() net.Addr { return n.listener.Addr() }

// Close implements net.Listener.
func (n *internet) Close() error {
	var err error
	n.closing.Do(func() {
		close(n.closed)
		err = n.listener.Close()
		n.working.Wait()
	})
	return err
}

// frontDesk sits before an authpool and notes who comes.
type frontDesk struct {
	listener net.Listener
	to       string
	working  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	notes []note
}

type note struct {
	at   time.Time
	text string
}

// notesKept bounds what is remembered of a client that comes again and again.
const notesKept = 1000

func newFrontDesk(to string) (*frontDesk, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	d := &frontDesk{listener: l, to: to, conns: map[net.Conn]bool{}}
	d.working.Go(d.serve)
	return d, nil
}

func (d *frontDesk) serve() {
	for {
		c, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.working.Go(func() { d.pass(c) })
	}
}

// pass notes the first line of a connection and passes it on.
func (d *frontDesk) pass(c net.Conn) {
	defer d.forget(c)
	if !d.enter(c) {
		return
	}
	r := bufio.NewReaderSize(c, 4096)
	_, _ = r.Peek(1)
	first, _ := r.Peek(r.Buffered())
	line, _, _ := strings.Cut(string(first), "\r\n")
	d.note(line)
	up, err := net.Dial("tcp", d.to)
	if err != nil || !d.enter(up) {
		return
	}
	defer d.forget(up)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(up, r) // either end may leave
		_ = up.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(c, up)
	_ = c.(*net.TCPConn).CloseWrite()
	both.Wait()
}

// enter remembers a connection, to be closed with the desk; false: it is closed already.
func (d *frontDesk) enter(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		_ = c.Close()
		return false
	}
	d.conns[c] = true
	return true
}

func (d *frontDesk) forget(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	_ = c.Close()
}

// empty tells whether nobody is there.
func (d *frontDesk) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns) == 0
}

func (d *frontDesk) note(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.notes) < notesKept {
		d.notes = append(d.notes, note{time.Now(), text})
	}
}

func (d *frontDesk) since(t time.Time) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var texts []string
	for _, n := range d.notes {
		if !n.at.Before(t) {
			texts = append(texts, n.text)
		}
	}
	return texts
}

func (d *frontDesk) close() error {
	err := d.listener.Close()
	d.mu.Lock()
	for c := range d.conns {
		_ = c.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.working.Wait()
	return err
}
