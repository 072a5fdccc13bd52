// Package certtest makes certificates for tests of what a TLS server may show: good
// ones, and every kind of bad one.
package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Authority signs for servers. A test uses it from one goroutine.
type Authority struct {
	t      testing.TB
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// New returns an Authority that nobody trusts yet.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, serial: 1}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.cert, a.key = a.sign(template, nil)
	return a
}

// Roots is a pool of the Authority alone.
func (a *Authority) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return roots
}

// sign makes a certificate; issuer nil signs it by itself.
func (a *Authority) sign(template *x509.Certificate, issuer *Authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := template, crypto.Signer(key)
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// Leaf returns a good certificate for a host, but for what change does to its template
// before it is signed.
func (a *Authority) Leaf(host string, change ...func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	return a.leaf(host, a, change)
}

// SelfSigned is Leaf that no authority has signed.
func (a *Authority) SelfSigned(host string) tls.Certificate {
	a.t.Helper()
	return a.leaf(host, nil, nil)
}

func (a *Authority) leaf(host string, issuer *Authority, change []func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, f := range change {
		f(template)
	}
	cert, key := a.sign(template, issuer)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// Expired has a certificate's time be over.
func Expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }

// Early has a certificate's time not have come yet.
func Early(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }

// SHA1 has a certificate signed over a digest that can be forged.
func SHA1(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }

// MustStaple has a certificate demand an OCSP response (RFC 7633).
func MustStaple(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
		Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 0x03, 0x02, 0x01, 0x05},
	})
}

// Staple returns leaf with an OCSP response of a's about it: status is one of package
// ocsp, and the response was made so long ago and is good for an hour.
func (a *Authority) Staple(leaf tls.Certificate, status int, ago time.Duration) tls.Certificate {
	a.t.Helper()
	made := time.Now().Add(-ago)
	response := ocsp.Response{
		Status: status, SerialNumber: leaf.Leaf.SerialNumber, ThisUpdate: made, NextUpdate: made.Add(time.Hour), RevokedAt: made,
	}
	der, err := ocsp.CreateResponse(a.cert, a.cert, response, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf.OCSPStaple = der
	return leaf
}
