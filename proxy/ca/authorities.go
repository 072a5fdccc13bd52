package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// leafLifetime is short, since a leaf is made in less than a millisecond.
	leafLifetime = 7 * 24 * time.Hour
	// leafMargin before its end it is made anew.
	leafMargin = 24 * time.Hour
	// leaves is how many are kept, which is more than there are provider hosts.
	leaves = 1024
	// BundleFile has all authorities, for agents to trust.
	BundleFile = "ca.pem"
)

// Authorities signs for provider hosts. It is safe for concurrent use.
type Authorities struct {
	dir   string
	hosts []string

	leaves *lru.Cache[string, *tls.Certificate]
	mu     sync.Mutex // held while authorities are read or made
	list   []*authority
	notes  []string // what was repaired and not told
	loaded time.Time
}

// Open reads the authorities in dir, and makes the first one, for the hosts, when there
// is none. It writes the bundle of them beside.
func Open(dir string, hosts []string) (*Authorities, error) {
	cache, err := lru.New[string, *tls.Certificate](leaves)
	if err != nil {
		return nil, err
	}
	a := &Authorities{dir: dir, hosts: hosts, leaves: cache}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot use the certificate authority: %w", err)
	}
	if err := a.Serve(hosts); err != nil {
		return nil, err
	}
	return a, nil
}

// Serve has authorities sign for these hosts from now on. For those that no present one
// may sign for it makes another one, which signs at once and for them alone: agents that
// trust the bundle as it was go on with all other hosts.
func (a *Authorities) Serve(hosts []string) error {
	unlock, err := lock(a.dir)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if err := a.load(now); err != nil {
		return err
	}
	a.hosts = hosts
	var missing []string
	for _, host := range names(hosts) {
		if a.signer(now, host) == nil {
			missing = append(missing, host)
		}
	}
	if len(missing) > 0 || len(a.list) == 0 {
		if err := create(a.dir, missing, now); err != nil {
			return fmt.Errorf("cannot make a certificate authority in %s: %w", a.dir, err)
		}
		if err := a.load(now); err != nil {
			return err
		}
	}
	for _, host := range names(hosts) { // so that no agent waits for the first
		if _, err := a.leaf(now, host); err != nil {
			return err
		}
	}
	return a.writeBundle()
}

// Rotate makes another authority that signs from the overlap on, for the hosts of Open
// and those of all so far: whoever rotates need not know all that a running proxy serves.
// Until then the bundle has it beside the present ones. It returns when that is.
func (a *Authorities) Rotate(overlap time.Duration) (time.Time, error) {
	from := time.Now().Add(overlap).Truncate(time.Second)
	unlock, err := lock(a.dir)
	if err != nil {
		return from, err
	}
	defer unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(time.Now()); err != nil {
		return from, err
	}
	hosts := slices.Clone(a.hosts)
	for _, one := range a.list { // those that sign first first
		hosts = append(hosts, one.cert.PermittedDNSDomains...)
		if one.signsFrom().Equal(from) { // certificates tell whole seconds, by which the newer one rules
			from = from.Add(time.Second)
		}
	}
	hosts = slices.DeleteFunc(hosts, func(host string) bool { return host == nobody })
	if err := create(a.dir, hosts, from); err != nil {
		return from, fmt.Errorf("cannot make a certificate authority in %s: %w", a.dir, err)
	}
	if err := a.load(time.Now()); err != nil {
		return from, err
	}
	return from, a.writeBundle()
}

// load reads the folder again: another process may have rotated.
func (a *Authorities) load(now time.Time) error {
	list, err := readAll(a.dir, now)
	if err != nil {
		return fmt.Errorf("cannot use the certificate authority: %w", err)
	}
	for _, one := range list {
		if one.note != "" {
			a.notes = append(a.notes, one.note)
		}
	}
	a.list, a.loaded = list, now
	return nil
}

// signer is who signs for a host now; nil: nobody may.
func (a *Authorities) signer(now time.Time, host string) *authority {
	var signs *authority
	for _, one := range a.list {
		if !one.permits(host) {
			continue
		}
		if signs == nil && !now.Before(one.cert.NotBefore) || !now.Before(one.signsFrom()) {
			signs = one
		}
	}
	return signs
}

// BundlePath is the file of all authorities that agents are to trust.
func (a *Authorities) BundlePath() string { return filepath.Join(a.dir, BundleFile) }

// Notes returns what was repaired of the files since the last call, a sentence each.
func (a *Authorities) Notes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	notes := a.notes
	a.notes = nil
	return notes
}

// Bundle is what is in it.
func (a *Authorities) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle()
}

func (a *Authorities) bundle() []byte {
	var all []byte
	for _, one := range a.list {
		all = append(all, one.pem...)
	}
	return all
}

// writeBundle replaces the bundle in one step, when it has changed: a client may read
// it at any time. Its caller holds lock.
func (a *Authorities) writeBundle() error {
	path, text := a.BundlePath(), a.bundle()
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, text, 0o644); err != nil { //nolint:gosec // certificates are for everyone
		return fmt.Errorf("cannot write the bundle of certificate authorities: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("cannot write the bundle of certificate authorities: %w", err)
	}
	return syncDir(a.dir)
}

// Ends is when nobody will be able to sign any more without a rotation.
func (a *Authorities) Ends() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	var end time.Time
	for _, one := range a.list {
		if one.cert.NotAfter.After(end) {
			end = one.cert.NotAfter
		}
	}
	return end
}

// NotPermittedError is for a host that no present authority was made for.
type NotPermittedError struct{ Host, bundle string }

// Error implements error.
func (e *NotPermittedError) Error() string {
	if net.ParseIP(e.Host) != nil {
		return "no local certificate authority signs for addresses, such as " + e.Host + ": name the host in the provider's base_url, or use authpool's address as base URL"
	}
	return "no local certificate authority may sign for " + e.Host + ": run \"authpool ca rotate --overlap 0\" and have agents trust " + e.bundle + " anew"
}

// reload is how old what is known of the folder may be.
const reload = time.Minute

// Leaf is the certificate of a host, made when there is none, with the present
// authority's own behind it. The error may be a *NotPermittedError.
func (a *Authorities) Leaf(host string) (*tls.Certificate, error) {
	now := time.Now()
	if leaf, ok := a.leaves.Get(host); ok && now.Before(leaf.Leaf.NotAfter.Add(-leafMargin)) && a.current(leaf, now) {
		return leaf, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refresh(now)
	return a.leaf(now, host)
}

// refresh reads the folder again when that was long ago. What is known is better than
// nothing where it cannot be read, as while somebody copies an authority there.
func (a *Authorities) refresh(now time.Time) {
	if now.Sub(a.loaded) >= reload && a.load(now) != nil {
		a.loaded = now
	}
}

// leaf makes a certificate. Its caller holds mu.
func (a *Authorities) leaf(now time.Time, host string) (*tls.Certificate, error) {
	signer := a.signer(now, host)
	if signer == nil {
		return nil, &NotPermittedError{host, a.BundlePath()}
	}
	leaf, err := signer.sign(host, now)
	if err != nil {
		return nil, fmt.Errorf("cannot sign for %s: %w", host, err)
	}
	a.leaves.Add(host, leaf)
	return leaf, nil
}

// current tells whether a leaf is the present authority's.
func (a *Authorities) current(leaf *tls.Certificate, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refresh(now)
	signer := a.signer(now, leaf.Leaf.DNSNames[0])
	return signer != nil && bytes.Equal(leaf.Certificate[1], signer.cert.Raw)
}

// sign makes a leaf.
func (a *authority) sign(host string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	from, to := now.Add(-behind), now.Add(leafLifetime)
	if from.Before(a.cert.NotBefore) {
		from = a.cert.NotBefore
	}
	if to.After(a.cert.NotAfter) {
		to = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{Organization: []string{"authpool"}, CommonName: host[:min(len(host), 64)]},
		NotBefore:    from.UTC(), NotAfter: to.UTC(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: []string{host},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
