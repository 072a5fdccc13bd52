package ca_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/proxy/ca"
)

var hosts = []string{"api.anthropic.com", "API.openai.com.", "127.0.0.1", "api.anthropic.com"}

func open(t *testing.T, dir string, hosts ...string) *ca.Authorities {
	t.Helper()
	a, err := ca.Open(dir, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// trust is how a client that has read the bundle verifies.
func trust(t *testing.T, bundle []byte) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		t.Fatalf("no certificate in %q", bundle)
	}
	return pool
}

func verify(leaf *tls.Certificate, roots *x509.CertPool, host string) error {
	intermediates := x509.NewCertPool()
	for _, der := range leaf.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(cert)
		}
	}
	_, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: intermediates, CurrentTime: time.Now()})
	return err
}

func TestLeaf(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, hosts...)
	roots := trust(t, a.Bundle())
	for _, host := range []string{"api.anthropic.com", "api.openai.com", "eu.api.openai.com"} {
		leaf, err := a.Leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(leaf, roots, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
		if again, _ := a.Leaf(host); again != leaf {
			t.Errorf("%s: made twice", host)
		}
	}
	for _, host := range []string{"example.com", "anthropic.com", "xapi.openai.com", "127.0.0.1", "::1", ""} {
		_, err := a.Leaf(host)
		if is := strings.Contains(fmt.Sprint(err), "addresses"); !errors.As(err, new(*ca.NotPermittedError)) || is != (net.ParseIP(host) != nil) {
			t.Errorf("%q: %v", host, err)
		}
	}
	// Another process with the folder has the same authority.
	leaf, err := open(t, dir, "other.example.com").Leaf("api.openai.com")
	if err != nil || verify(leaf, roots, "api.openai.com") != nil {
		t.Errorf("opened again: %v", err)
	}
	if info, err := os.Stat(a.BundlePath()); err != nil || info.Mode().Perm()&0o444 != 0o444 {
		t.Errorf("agents cannot read the bundle: %v, %v", info, err)
	}
}

// What a thief of the key signs for others is refused by clients.
func TestConstraints(t *testing.T) {
	a := open(t, t.TempDir(), hosts...)
	block, _ := pem.Decode(a.Bundle())
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.PermittedDNSDomainsCritical || len(cert.PermittedDNSDomains) != 2 || len(cert.ExcludedIPRanges) != 2 || !cert.MaxPathLenZero {
		t.Errorf("%v, %v", cert.PermittedDNSDomains, cert.ExcludedIPRanges)
	}
	none := open(t, t.TempDir(), "127.0.0.1")
	if _, err := none.Leaf("api.openai.com"); err == nil || bytes.Count(none.Bundle(), []byte("BEGIN CERT")) != 1 {
		t.Errorf("an authority of providers without names signs for one: %v", err)
	}
}

// A new authority is known for the overlap before it signs, and who has read the
// bundle in that time notices nothing.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, dir, hosts...)
		old := trust(t, a.Bundle())
		other := open(t, dir, hosts...) // another process
		if _, err := other.Leaf("api.openai.com"); err != nil {
			t.Fatal(err)
		}
		from, err := a.Rotate(24 * time.Hour)
		if err != nil || from.Before(time.Now().Add(24*time.Hour-time.Second)) {
			t.Fatal(from, err)
		}
		both := trust(t, a.Bundle())
		if text, _ := os.ReadFile(a.BundlePath()); !bytes.Equal(text, a.Bundle()) || bytes.Count(text, []byte("BEGIN CERT")) != 2 {
			t.Errorf("the bundle is %s", text)
		}
		check := func(when string, oldStill bool) {
			t.Helper()
			for _, one := range []*ca.Authorities{a, other} {
				leaf, err := one.Leaf("api.openai.com")
				if err != nil {
					t.Fatal(when, err)
				}
				if err := verify(leaf, both, "api.openai.com"); err != nil {
					t.Errorf("%s, who knows both: %v", when, err)
				}
				if err := verify(leaf, old, "api.openai.com"); (err == nil) != oldStill {
					t.Errorf("%s, who knows the old one: %v", when, err)
				}
			}
		}
		check("at once", true)
		time.Sleep(23*time.Hour + 58*time.Minute)
		check("within the overlap", true)
		time.Sleep(3 * time.Minute)
		check("after it", false)
		time.Sleep((5*365 - 2) * 24 * time.Hour)
		if ends := a.Ends(); !ends.After(time.Now()) {
			t.Errorf("it ends %v", ends)
		}
		time.Sleep(3 * 24 * time.Hour)
		if _, err := other.Leaf("api.openai.com"); err == nil || !strings.Contains(err.Error(), "ca rotate") {
			t.Errorf("after the end of all: %v", err)
		}
	})
}

// A host that becomes a provider's gets an authority of its own, and agents that trust
// the bundle of before go on with all others.
func TestServeAnotherHost(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, hosts...)
	before := trust(t, a.Bundle())
	for range 2 { // the second time there is nothing to do
		if err := a.Serve(append([]string{"llm.example.test"}, hosts...)); err != nil {
			t.Fatal(err)
		}
	}
	if text, _ := os.ReadFile(a.BundlePath()); !bytes.Equal(text, a.Bundle()) || bytes.Count(text, []byte("BEGIN CERT")) != 2 {
		t.Errorf("the bundle is %s", text)
	}
	for _, one := range []*ca.Authorities{a, open(t, dir, hosts...)} {
		for host, known := range map[string]bool{"api.openai.com": true, "llm.example.test": false} {
			leaf, err := one.Leaf(host)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(leaf, trust(t, a.Bundle()), host); err != nil {
				t.Errorf("%s, who knows both: %v", host, err)
			}
			if err := verify(leaf, before, host); (err == nil) != known {
				t.Errorf("%s, who knows the first: %v", host, err)
			}
		}
	}
}

// Who rotates without knowing all hosts takes none away.
func TestRotationKeepsHosts(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, "llm.example.test")
	a := open(t, dir, "api.openai.com")
	if _, err := a.Rotate(0); err != nil {
		t.Fatal(err)
	}
	roots := trust(t, a.Bundle())
	for _, host := range []string{"llm.example.test", "api.openai.com"} {
		if leaf, err := a.Leaf(host); err != nil || verify(leaf, roots, host) != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// Nor from an authority that is older than the newest.
func TestRotationKeepsHostsOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first := open(t, dir, "llm.example.test")
		before, err := first.Leaf("llm.example.test")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		a := open(t, dir, "api.openai.com")
		time.Sleep(time.Hour)
		if _, err := a.Rotate(0); err != nil {
			t.Fatal(err)
		}
		leaf, err := a.Leaf("llm.example.test")
		if err != nil || bytes.Equal(leaf.Certificate[1], before.Certificate[1]) {
			t.Errorf("the first authority goes on signing: %v", err)
		}
	})
}

// A new authority signs when Rotate says, also where the one before is as new.
func TestRotateAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, t.TempDir(), hosts...)
		for i := range 8 {
			before, err := a.Leaf("api.openai.com")
			if err != nil {
				t.Fatal(err)
			}
			from, err := a.Rotate(0)
			if err != nil || time.Until(from) > time.Second {
				t.Fatal(from, err)
			}
			time.Sleep(time.Until(from))
			after, err := a.Leaf("api.openai.com")
			if err != nil || bytes.Equal(after.Certificate[1], before.Certificate[1]) {
				t.Fatalf("rotation %d: the former authority signs: %v", i, err)
			}
		}
	})
}

// Processes that make authorities in one folder at once leave it whole: each file is of
// the authority that it lies beside, and the bundle has all of them.
func TestTogether(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			a, err := ca.Open(dir, hosts)
			if err != nil {
				t.Error(err)
				return
			}
			for range 4 {
				if _, err := a.Rotate(time.Hour); err != nil {
					t.Error(err)
				}
				if err := a.Serve(append([]string{fmt.Sprintf("llm%d.example.test", i)}, hosts...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	text, err := os.ReadFile(filepath.Join(dir, ca.BundleFile))
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, dir, hosts...)
	if !bytes.Equal(text, a.Bundle()) {
		t.Error("the bundle lacks an authority")
	}
	// One of the first process, one of each for its host, and those of the rotations.
	if n := bytes.Count(text, []byte("BEGIN CERT")); n > 1+8+8*4 {
		t.Errorf("there are %d authorities", n)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// What cannot be read of a folder while serving, as of one that is being copied to it,
// ends nothing that is known.
func TestUnreadableWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, dir, hosts...)
		if err := os.MkdirAll(filepath.Join(dir, "half"), 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		for _, host := range []string{"api.openai.com", "eu.api.openai.com"} {
			if _, err := a.Leaf(host); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	})
}

// Leaves are made anew before they end.
func TestLeafEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, t.TempDir(), hosts...)
		first, _ := a.Leaf("api.openai.com")
		for range 60 {
			time.Sleep(12 * time.Hour)
			leaf, err := a.Leaf("api.openai.com")
			if err != nil || leaf.Leaf.NotAfter.Before(time.Now().Add(23*time.Hour)) {
				t.Fatal(leaf.Leaf.NotAfter, err)
			}
			if err := verify(leaf, trust(t, a.Bundle()), "api.openai.com"); err != nil {
				t.Fatal(err)
			}
		}
		if last, _ := a.Leaf("api.openai.com"); last == first {
			t.Error("it lives for ever")
		}
	})
}

// A folder that was copied may have lost its modes.
func TestKeyForAllToRead(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, hosts...)
	keys, _ := filepath.Glob(filepath.Join(dir, "*", "ca.key"))
	chmod(t, keys[0], 0o644)
	a := open(t, dir, hosts...)
	if notes := a.Notes(); len(notes) != 1 || !strings.Contains(notes[0], keys[0]) || !strings.Contains(notes[0], "0644") || a.Notes() != nil {
		t.Errorf("it notes %q", notes)
	}
	if info, err := os.Stat(keys[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
}

func TestDamage(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(t *testing.T, dir string)
		want string
	}{
		"no key": {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "ca.key")) }, "no such file"},
		"half a key": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "ca.key"), "-----BEGIN PRIVATE KEY-----\nAAAA")
		}, "ca.key is no key"},
		"no certificate": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "ca.crt"), "x") }, "ca.crt is not one certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir, hosts...)
			folders, _ := filepath.Glob(filepath.Join(dir, "*", "ca.crt"))
			if len(folders) != 1 {
				t.Fatal(folders)
			}
			test.do(t, filepath.Dir(folders[0]))
			if _, err := ca.Open(dir, hosts); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
	// A crash while the first was made.
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ".new", "ca.key"), "half")
	open(t, dir, hosts...)
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Others than Go read it, too.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	dir := t.TempDir()
	a := open(t, dir, hosts...)
	for host, good := range map[string]bool{"api.anthropic.com": true, "api.openai.com": true} {
		leaf, err := a.Leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "leaf.pem")
		write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})))
		out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile", a.BundlePath(), path).CombinedOutput()
		if (err == nil) != good {
			t.Errorf("%s: %s", host, out)
		}
	}
}

// Many connections at once, over a real handshake.
func TestHandshakes(t *testing.T) {
	a := open(t, t.TempDir(), hosts...)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.Leaf(h.ServerName) }})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				_ = c.(*tls.Conn).Handshake()
				_ = c.Close()
			})
		}
	})
	defer serving.Wait()
	defer ln.Close()
	roots := trust(t, a.Bundle())
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			host := []string{"api.anthropic.com", "api.openai.com"}[i%2]
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: host})
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		})
	}
	clients.Wait()
}

func BenchmarkLeaf(b *testing.B) {
	a, err := ca.Open(b.TempDir(), hosts)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			if _, err := a.Leaf("api.openai.com"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
