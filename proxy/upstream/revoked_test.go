package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/authpool/authpool/proxy/upstream/certtest"
)

// A provider whose certificate is not good gets no byte of a request.
func TestCertificates(t *testing.T) {
	const host = "llm.example.test"
	ca, stranger := certtest.New(t), certtest.New(t)
	leaf := func(change ...func(*x509.Certificate)) tls.Certificate { return ca.Leaf(host, change...) }
	stapled := leaf(certtest.MustStaple)
	revoked := ca.Staple(leaf(), ocsp.Revoked, time.Minute)
	as := func(text string) func(error) bool {
		return func(err error) bool { return strings.Contains(err.Error(), text) }
	}
	is := func(want error) func(error) bool {
		return func(err error) bool { return errors.Is(err, want) }
	}
	for name, tt := range map[string]struct {
		shown tls.Certificate
		want  func(error) bool // nil: the request is sent
	}{
		"good":                         {leaf(), nil},
		"expired":                      {leaf(certtest.Expired), as("expired")},
		"not yet good":                 {leaf(certtest.Early), as("not yet valid")},
		"self-signed":                  {ca.SelfSigned(host), as("unknown authority")},
		"a stranger's":                 {stranger.Leaf(host), as("unknown authority")},
		"another host's":               {ca.Leaf("other.example.test"), as("other.example.test")},
		"signed over SHA-1":            {leaf(certtest.SHA1), as("SHA1")},
		"revoked":                      {revoked, is(ErrRevoked)},
		"revoked, an old response":     {ca.Staple(leaf(), ocsp.Revoked, 48*time.Hour), is(ErrRevoked)},
		"stapled and good":             {ca.Staple(leaf(), ocsp.Good, time.Minute), nil},
		"stapled, nobody knows":        {ca.Staple(leaf(), ocsp.Unknown, time.Minute), nil},
		"revoked by a stranger":        {stranger.Staple(leaf(), ocsp.Revoked, time.Minute), nil},
		"staple of another":            {withStaple(leaf(), revoked.OCSPStaple), nil},
		"staple that is none":          {withStaple(leaf(), []byte("no DER")), nil},
		"must staple":                  {stapled, is(ErrNoStaple)},
		"must staple, and does":        {ca.Staple(stapled, ocsp.Good, time.Minute), nil},
		"must staple, an old response": {ca.Staple(stapled, ocsp.Good, 2*time.Hour), is(ErrNoStaple)},
		"must staple, one of tomorrow": {ca.Staple(stapled, ocsp.Good, -24*time.Hour), is(ErrNoStaple)},
		"must staple, nobody knows":    {ca.Staple(stapled, ocsp.Unknown, time.Minute), is(ErrNoStaple)},
		"must staple, revoked":         {ca.Staple(stapled, ocsp.Revoked, time.Minute), is(ErrRevoked)},
	} {
		t.Run(name, func(t *testing.T) {
			o, said := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{tt.shown}})
			o.Host = host
			tr := newTransport(t, func(opts *Options) { opts.RootCAs = ca.Roots() })
			var call Call
			err := tr.Do(context.Background(), &call, o, head(0), nil, false)
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				call.Close()
				if <-said == "" {
					t.Error("no request came")
				}
				return
			}
			if err == nil || !tt.want(err) {
				t.Errorf("err = %v", err)
			}
			if _, is := errors.AsType[*tls.CertificateVerificationError](err); !is {
				t.Errorf("%T is not told as a certificate's", errors.Unwrap(err))
			}
			if got := <-said; got != "" {
				t.Errorf("the server got %q", got)
			}
		})
	}
}

func withStaple(leaf tls.Certificate, staple []byte) tls.Certificate {
	leaf.OCSPStaple = staple
	return leaf
}

// tlsServer answers one request; said is what of it came, empty when the handshake
// failed.
func tlsServer(t *testing.T, config *tls.Config) (o Origin, said <-chan string) {
	t.Helper()
	got := make(chan string, 1)
	o = rawServer(t, func(nc net.Conn) {
		c := tls.Server(nc, config)
		b := make([]byte, 4096)
		n, _ := c.Read(b)
		got <- string(b[:n])
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	o.TLS = true
	return o, got
}
