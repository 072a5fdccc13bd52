package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listen("unix:"+path, "--listen", ownerOnly)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket is %v, %v", info, err)
	}
	if first.Addr().String() != path {
		t.Errorf("its address is %s", first.Addr())
	}
	if _, err := listen("unix:"+path, "--listen", ownerOnly); err == nil || !strings.Contains(err.Error(), "is taken by another program") {
		t.Errorf("a socket in use: got %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

// TestListenUnixReplacesADeadSocket: a process that was killed leaves its socket
// file behind.
func TestListenUnixReplacesADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := listen("unix:"+path, "--listen", ownerOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestListenUnixKeepsABusySocket: one that takes no connection at the moment is no dead
// one.
func TestListenUnixKeepsABusySocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 10 { // more than may wait
		c, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if _, err := net.DialTimeout("unix", path, time.Second); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Skipf("the system has no full sockets: %v", err)
	}
	if l, err := listen("unix:"+path, "--listen", ownerOnly); err == nil || !strings.Contains(err.Error(), "is taken by another program") {
		t.Errorf("got %v, %v", l, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// TestListenUnixTogether: of many that find a dead socket one has it.
func TestListenUnixTogether(t *testing.T) {
	for range 5 {
		path := filepath.Join(t.TempDir(), "s")
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		if err := dead.Close(); err != nil {
			t.Fatal(err)
		}
		const many = 8
		got := make(chan net.Listener, many)
		for range many {
			go func() {
				l, _ := listen("unix:"+path, "--listen", ownerOnly)
				got <- l
			}()
		}
		var have []net.Listener
		for range many {
			if l := <-got; l != nil {
				have = append(have, l)
			}
		}
		for _, l := range have {
			_ = l.Close()
		}
		if len(have) != 1 {
			t.Fatalf("%d of them have it", len(have))
		}
	}
}

// TestListenUnixRemovesItsOwn: a socket that has come in the place of ours stays.
func TestListenUnixRemovesItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listen("unix:"+path, "--listen", ownerOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := listen("unix:"+path, "--listen", ownerOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestListenUnixKeepsFiles: what is no socket is never removed.
func TestListenUnixKeepsFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen("unix:"+path, "--listen", ownerOnly); err == nil {
		_ = l.Close()
		t.Error("a file was taken for a socket")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "x" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = listen(taken.Addr().String(), "--listen or the key listen", ownerOnly)
	want := fmt.Sprintf("%s is taken by another program: stop it or choose another address by --listen or the key listen", taken.Addr())
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = listen("192.0.2.1:0", "--listen", ownerOnly) // no machine has this address
	if err == nil || !strings.Contains(err.Error(), "choose another address by --listen") || errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}

// TestServeOnTLSAndUnix serves agents on a socket, on loopback without TLS, and
// on an address that others can reach with it.
func TestServeOnTLSAndUnix(t *testing.T) {
	folder := t.TempDir()
	pool := makeCertificate(t, folder)
	cfg, err := config.Parse(filepath.Join(folder, "authpool.yaml"), []byte(`
listen: ["unix:`+folder+`/agents.sock", "127.0.0.1:0", "0.0.0.0:0"]
tls: {cert: file:cert.pem, key: file:key.pem}
admin: {listen: 127.0.0.1:0}
redis: {listen: "off"}
state_dir: state
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, os.Getenv, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	_, open, _ := net.SplitHostPort(s.agentListeners[2].Addr().String())
	f := func(url string, dial func() (net.Conn, error)) {
		t.Helper()
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
		if dial != nil {
			transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return dial() }
		}
		resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(url + "/v1/models")
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %s, want the 401 of an agent without a token", url, resp.Status)
		}
	}
	f("http://localhost", func() (net.Conn, error) { return net.Dial("unix", folder+"/agents.sock") })
	f("http://"+s.agentListeners[1].Addr().String(), nil)
	f("https://127.0.0.1:"+open, nil)
}

// makeCertificate writes cert.pem and key.pem for 127.0.0.1 and returns who
// trusts them.
func makeCertificate(t *testing.T, folder string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authpool test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		var text bytes.Buffer
		if err := pem.Encode(&text, block); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(certificate)
	return pool
}
