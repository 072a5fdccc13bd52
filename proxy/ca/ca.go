// Package ca is the local certificate authority of proxy mode: agents that trust it
// let authpool open their TLS to a provider's host.
//
// Start at Open. An authority is a pair of files in a folder of its own below the
// folder of Open, ca.crt and ca.key (0600). There may be several: each signs from its
// NotBefore on (an hour later, against clocks that are behind), until a newer one does.
// So a new one can be made known to agents before it is used: Rotate makes it, Bundle
// has all of them, and who has read the bundle meanwhile trusts both.
//
// An authority is worth little to who steals it: it can sign for the provider hosts
// only that it was made for (name constraints, RFC 5280 4.2.1.10) and for no address.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	certFile = "ca.crt"
	keyFile  = "ca.key"

	// lifetime is an authority's. Agents' machines are told of a new one by hand.
	lifetime = 5 * 365 * 24 * time.Hour
	// behind is how far a client's clock may be.
	behind = time.Hour
	// nobody is for an authority of no hosts, since no constraint would permit all
	// (RFC 2606).
	nobody = "authpool.invalid"
	// commonName begins that of every authority.
	commonName = "authpool local CA "
	// Overlap is how long a new authority is made known, by default, before it signs.
	Overlap = 30 * 24 * time.Hour
)

// authority is one certificate authority.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
	note string // what was repaired of its files; empty: nothing
}

// signsFrom is when it may sign, unless a newer one does.
func (a *authority) signsFrom() time.Time { return a.cert.NotBefore.Add(behind) }

// Own tells whether a certificate is that of an authority that authpool has made, in this
// folder or another, now or formerly.
func Own(cert *x509.Certificate) bool {
	return cert.IsCA && strings.HasPrefix(cert.Subject.CommonName, commonName)
}

// permits tells whether it may sign for a host.
func (a *authority) permits(host string) bool {
	if net.ParseIP(host) != nil {
		return false
	}
	return slices.ContainsFunc(a.cert.PermittedDNSDomains, func(domain string) bool {
		return strings.EqualFold(host, domain) || len(host) > len(domain) && strings.EqualFold(host[len(host)-len(domain)-1:], "."+domain)
	})
}

// lockFile lies in the folder of the authorities.
const lockFile = ".lock"

// lock waits until no other process makes an authority in dir or writes its bundle, for
// 10 seconds, and keeps others from it until unlock is called.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot use the certificate authority: %w", err)
	}
	const tries, pause = 500, 20 * time.Millisecond
	for try := 1; ; try++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || try == tries {
			return nil, errors.Join(fmt.Errorf("cannot lock %s, which another authpool may have: %w", f.Name(), err), f.Close())
		}
		<-time.After(pause)
	}
}

// create makes an authority for the hosts in a folder below dir. Its caller holds lock.
func create(dir string, hosts []string, signsFrom time.Time) error {
	if hosts = names(hosts); len(hosts) == 0 {
		hosts = []string{nobody}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial := newSerial()
	id := hex.EncodeToString(serial.Bytes())
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"authpool"}, CommonName: commonName + id[:8]},
		NotBefore:             signsFrom.Add(-behind).UTC(),
		NotAfter:              signsFrom.Add(lifetime).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         hosts,
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The folder gets its name when both files are on the disk: a crash leaves no half
	// authority.
	fresh := filepath.Join(dir, ".new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(fresh, keyFile), 0o600, "PRIVATE KEY", secret); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(fresh, certFile), 0o644, "CERTIFICATE", der); err != nil {
		return err
	}
	if err := syncDir(fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(dir, id)); err != nil {
		return err
	}
	return syncDir(dir)
}

// names are the hosts that are names, in lower case, each once and sorted.
func names(hosts []string) []string {
	var list []string
	for _, host := range hosts {
		if host = strings.ToLower(strings.TrimSuffix(host, ".")); host != "" && net.ParseIP(host) == nil {
			list = append(list, host)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])  // crypto/rand never fails
	b[0] = b[0]&0x3f | 0x40 // positive, and always as long
	return new(big.Int).SetBytes(b[:])
}

func writeFile(path string, mode fs.FileMode, kind string, der []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readAll reads the authorities in dir that have not ended, those that sign first
// first.
func readAll(dir string, now time.Time) ([]*authority, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*authority
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		a, err := read(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("%s: %w; delete that folder, and have agents trust the bundle anew", filepath.Join(dir, e.Name()), err)
		}
		if now.Before(a.cert.NotAfter) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b *authority) int { return a.cert.NotBefore.Compare(b.cert.NotBefore) })
	return list, nil
}

func read(dir string) (*authority, error) {
	text, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is not one certificate", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	path := filepath.Join(dir, keyFile)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	note := ""
	if mode := info.Mode().Perm(); mode&0o077 != 0 { // as of a folder that was copied
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, fmt.Errorf("%s can be read by others (mode %04o), who can be any provider to your agents by it: %w", keyFile, mode, err)
		}
		note = fmt.Sprintf("%s could be read by others (mode %04o), now it is 0600; who has looked can be any provider to your agents: delete that folder then, start anew, and have agents trust the bundle anew", path, mode)
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	keyBlock, _ := pem.Decode(secret)
	if keyBlock == nil {
		return nil, fmt.Errorf("%s is no key", keyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is no key", keyFile) // the cause could quote it
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	return &authority{cert: cert, pem: pem.EncodeToMemory(block), key: key, note: note}, nil
}
