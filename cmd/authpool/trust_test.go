package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/authpool/authpool/proxy/ca"
)

// The authorities that a shell trusts of its own stay, also where its variables name our
// files already and when our authorities are rotated; of ours those stay that there are.
func TestTrustKeepsTheShellsOwn(t *testing.T) {
	state := t.TempDir()
	folder := filepath.Join(state, authorityFolder)
	authorities, err := ca.Open(folder, []string{"api.openai.com"})
	if err != nil {
		t.Fatal(err)
	}
	// Not a certificate of authpool's: its content is of no matter here.
	company := []byte("-----BEGIN CERTIFICATE-----\nY29tcGFueQ==\n-----END CERTIFICATE-----\n")
	extra := []byte("-----BEGIN CERTIFICATE-----\nZXh0cmE=\n-----END CERTIFICATE-----\n")
	shell := map[string]string{}
	for name, text := range map[string][]byte{"SSL_CERT_FILE": company, "NODE_EXTRA_CA_CERTS": extra} {
		shell[name] = filepath.Join(t.TempDir(), "own.pem")
		if err := os.WriteFile(shell[name], text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, n int) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(folder, wholeFile))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, company) || !bytes.Contains(text, extra) || !bytes.Contains(text, authorities.Bundle()) || bytes.Count(text, []byte("BEGIN")) != n {
			t.Errorf("%s: %s", when, text)
		}
	}
	for _, when := range []string{"at first", "again, in a shell with what came of it"} {
		got, err := newTrust(state, func(name string) string { return shell[name] })
		if err != nil {
			t.Fatal(err)
		}
		if got.own != got.whole {
			t.Errorf("%s: what is added is %s", when, got.own)
		}
		check(when, 3)
		shell["SSL_CERT_FILE"], shell["NODE_EXTRA_CA_CERTS"] = got.whole, got.own
	}
	if _, err := authorities.Rotate(0); err != nil {
		t.Fatal(err)
	}
	if err := refreshTrust(state); err != nil {
		t.Fatal(err)
	}
	check("rotated", 4)
	// One that was deleted, for its key may be stolen, is trusted no more.
	folders, _ := filepath.Glob(filepath.Join(folder, "*", "ca.key"))
	if err := os.RemoveAll(filepath.Dir(folders[0])); err != nil {
		t.Fatal(err)
	}
	if authorities, err = ca.Open(folder, []string{"api.openai.com"}); err != nil {
		t.Fatal(err)
	}
	if err := refreshTrust(state); err != nil {
		t.Fatal(err)
	}
	check("one deleted", 3)
}
