package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/authpool/authpool/proxy/ca"
)

// trust is what agents verify authpool's certificates by in proxy mode. Some variables
// of clients add authorities to the system's; most replace them, so that what they name
// must hold the system's, too.
type trust struct {
	own   string // file with authpool's authorities
	whole string // file with the system's, the shell's own and authpool's
}

// wholeFile lies beside ca.BundleFile.
const wholeFile = "bundle.pem"

// systemRoots are where systems keep their authorities: Debian, Fedora, openSUSE, older
// and newer RHEL, then Alpine, the BSDs and macOS (as in Go's crypto/x509).
var systemRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// newTrust brings the files of trust in the state folder up to date. A shell that trusts
// authorities of its own (SSL_CERT_FILE, NODE_EXTRA_CA_CERTS) goes on with them, also when
// its variables name our files already, as those of an agent or after "authpool env".
func newTrust(state string, getenv func(string) string) (trust, error) {
	folder := filepath.Join(state, authorityFolder)
	t := trust{own: filepath.Join(folder, ca.BundleFile), whole: filepath.Join(folder, wholeFile)}
	_, err := os.Stat(t.own)
	if errors.Is(err, fs.ErrNotExist) {
		return t, noAuthority(state)
	}
	if err != nil {
		return t, fmt.Errorf("cannot read the certificate authority: %w", err)
	}
	var whole []byte
	join := func(path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cannot read the authorities that are trusted so far: %w", err)
		}
		if len(whole) > 0 && whole[len(whole)-1] != '\n' {
			whole = append(whole, '\n')
		}
		whole = append(whole, text...)
		return nil
	}
	switch path := getenv("SSL_CERT_FILE"); {
	case path == t.whole:
		whole = strangers(t.whole)
	case path != "" && path != t.own:
		if err := join(path); err != nil {
			return t, err
		}
	}
	if path := firstFile(systemRoots); len(whole) == 0 && path != "" { // a container without any has ours alone
		if err := join(path); err != nil {
			return t, err
		}
	}
	switch path := getenv("NODE_EXTRA_CA_CERTS"); path {
	case "", t.own:
	case t.whole:
		t.own = t.whole
	default:
		if err := join(path); err != nil {
			return t, err
		}
		t.own = t.whole // there is one variable only to add by
	}
	if err := join(filepath.Join(folder, ca.BundleFile)); err != nil {
		return t, err
	}
	return t, replaceFile(t.whole, whole, 0o644)
}

// refreshTrust brings our authorities in the files of trust up to date, and leaves those of
// the shells that they were made for.
func refreshTrust(state string) error {
	_, err := newTrust(state, func(name string) string {
		if name == "SSL_CERT_FILE" {
			return filepath.Join(state, authorityFolder, wholeFile)
		}
		return ""
	})
	return err
}

// strangers are the authorities in a file, in PEM, that authpool has not made: of its own
// those count that there are now. A file that cannot be read has none.
func strangers(path string) []byte {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var kept []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err != nil || !ca.Own(cert) {
			kept = append(kept, pem.EncodeToMemory(block)...)
		}
	}
	return kept
}

func firstFile(paths []string) string {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// replaceFile writes a file in one step, for others may read it at any time. One that
// has the content already is left alone: the folder may be read-only.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
