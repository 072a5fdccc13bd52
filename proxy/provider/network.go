package provider

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/ratelimit"
)

// ClassifyError decides what it means that an attempt ended without an answer,
// or within one before its first content. All of it counts against the
// subscription's breaker at its base URL. Only with ReasonConnect is it sure
// that the provider has seen nothing of the request.
func ClassifyError(err error) ratelimit.Verdict {
	reason := networkReason(err)
	return ratelimit.Verdict{
		Signal: ratelimit.Network, Reason: reason, Scope: ratelimit.ScopeSubscription,
		Wait: -1, Row: "network-" + string(reason),
	}
}

func networkReason(err error) ratelimit.Reason {
	var (
		operation   *net.OpError
		lookup      *net.DNSError
		certificate *tls.CertificateVerificationError
		authority   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		invalid     x509.CertificateInvalidError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		timeout     interface{ Timeout() bool } // net.Error, without what is deprecated
	)
	switch {
	case errors.As(err, &certificate), errors.As(err, &authority), errors.As(err, &hostname),
		errors.As(err, &invalid), errors.As(err, &record), errors.As(err, &alert),
		errors.Is(err, fasthttp.ErrTLSHandshakeTimeout):
		return ratelimit.ReasonTLS
	case errors.As(err, &lookup), errors.As(err, &operation) && operation.Op == "dial",
		errors.Is(err, fasthttp.ErrDialTimeout), errors.Is(err, fasthttp.ErrNoFreeConns),
		errors.Is(err, syscall.ECONNREFUSED):
		return ratelimit.ReasonConnect
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return ratelimit.ReasonTimeout
	}
	return ratelimit.ReasonReset
}
