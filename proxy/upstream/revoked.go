package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Errors of a certificate that is valid but for its revocation; a
// *tls.CertificateVerificationError holds them.
var (
	// ErrRevoked says that the certificate's issuer has revoked it.
	ErrRevoked = errors.New("the certificate is revoked, as the OCSP response that came with it says")
	// ErrNoStaple says that the certificate is good only with an OCSP response that says
	// so (Must-Staple), and that none came.
	ErrNoStaple = errors.New("the certificate demands a good OCSP response (Must-Staple), and none came with it")
)

// verifyRevocation is the tls.Config.VerifyConnection of connections to providers. The
// standard library does not look at revocation at all. What is looked at here is what
// the handshake brings along: a stapled OCSP response (RFC 6066, section 8) that says
// revoked is believed, and a certificate that demands one is held to it (RFC 7633).
//
// Nothing is fetched from the issuer: who can stand between authpool and a provider
// with a stolen key can keep that answer back, too, so that fetching helps only where
// it fails closed, and then the issuer's outage is authpool's. A response that is
// malformed, of somebody else or out of date says nothing.
func verifyRevocation(cs tls.ConnectionState) error { return revocation(cs, time.Now()) }

func revocation(cs tls.ConnectionState, now time.Time) error {
	if cs.DidResume {
		return nil // looked at when the session was made
	}
	leaf := cs.PeerCertificates[0]
	bad := func(err error) error {
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	good := false
	for _, chain := range cs.VerifiedChains {
		if len(chain) < 2 || len(cs.OCSPResponse) == 0 {
			continue // trusted by itself, or nothing came
		}
		response, err := ocsp.ParseResponseForCert(cs.OCSPResponse, leaf, chain[1])
		if err != nil {
			continue
		}
		current := !response.ThisUpdate.After(now.Add(clockSkew)) && (response.NextUpdate.IsZero() || now.Before(response.NextUpdate.Add(clockSkew)))
		switch {
		case response.Status == ocsp.Revoked: // which does not pass with time
			return bad(ErrRevoked)
		case response.Status == ocsp.Good && current:
			good = true
		}
	}
	if !good && mustStaple(leaf) {
		return bad(ErrNoStaple)
	}
	return nil
}

// clockSkew is how far the clocks of an issuer and of this machine may differ.
const clockSkew = 5 * time.Minute

// tlsFeature is the extension in which a certificate says which TLS extensions its
// server must answer (RFC 7633, section 6), and statusRequest the one of OCSP (RFC 6066).
var (
	tlsFeature    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}
	statusRequest = []byte{0x02, 0x01, 0x05} // INTEGER 5
)

// mustStaple tells whether a certificate demands a stapled OCSP response.
func mustStaple(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal(tlsFeature) {
			return bytes.Contains(e.Value, statusRequest)
		}
	}
	return false
}
