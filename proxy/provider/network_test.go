package provider_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

func TestClassifyError(t *testing.T) {
	tests := []struct {
		err  error
		want ratelimit.Reason
	}{
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, ratelimit.ReasonConnect},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, ratelimit.ReasonConnect},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, ratelimit.ReasonConnect},
		{fasthttp.ErrDialTimeout, ratelimit.ReasonConnect},
		{fasthttp.ErrNoFreeConns, ratelimit.ReasonConnect},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, ratelimit.ReasonReset},
		{&net.OpError{Op: "write", Err: syscall.EPIPE}, ratelimit.ReasonReset},
		{io.EOF, ratelimit.ReasonReset},
		{io.ErrUnexpectedEOF, ratelimit.ReasonReset},
		{fasthttp.ErrConnectionClosed, ratelimit.ReasonReset},
		{errors.New("something else"), ratelimit.ReasonReset},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, ratelimit.ReasonTimeout},
		{os.ErrDeadlineExceeded, ratelimit.ReasonTimeout},
		{context.DeadlineExceeded, ratelimit.ReasonTimeout},
		{fasthttp.ErrTimeout, ratelimit.ReasonTimeout},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, ratelimit.ReasonTLS},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, ratelimit.ReasonTLS},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, ratelimit.ReasonTLS},
		{tls.AlertError(40), ratelimit.ReasonTLS},
		{fasthttp.ErrTLSHandshakeTimeout, ratelimit.ReasonTLS},
	}
	for _, test := range tests {
		for _, err := range []error{test.err, fmt.Errorf("cannot reach api.example.com: %w", test.err)} {
			got := provider.ClassifyError(err)
			if got.Reason != test.want || got.Signal != ratelimit.Network || got.Scope != ratelimit.ScopeSubscription || got.Wait >= 0 || got.Row != "network-"+string(test.want) {
				t.Errorf("%v: got %+v, want %s", err, got, test.want)
			}
		}
	}
}
