package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/authpool/authpool/pool/credential"
)

// guardBrowsers refuses what only a browser that was tricked would send: a
// request from another site's page (Origin, Sec-Fetch-Site), and, on a loopback
// connection, a Host that is no name of this machine (DNS rebinding: a page
// whose name was made to resolve to 127.0.0.1).
func guardBrowsers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case onLoopback(r) && !localHost(r.Host):
			coded(w, http.StatusForbidden, CodeHost, "this address answers only to localhost and loopback addresses, not to Host "+quoteHost(r.Host))
		case !sameOrigin(r):
			coded(w, http.StatusForbidden, CodeBrowser, "requests from other web pages are refused")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// onLoopback tells whether the connection came in at a loopback address.
func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	addr, err := netip.ParseAddrPort(local.String())
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// localHost tells whether host (with or without a port) names this machine's
// loopback interface.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// sameOrigin tells whether no browser sent r, or one on a page of this server.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return false
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	u, err := url.Parse(origins[0])
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// quoteHost shortens a Host that is shown in an error.
func quoteHost(host string) string {
	if len(host) > 80 {
		host = host[:80]
	}
	return "\"" + strings.Map(func(r rune) rune {
		if r < ' ' || r == '"' || r > '~' {
			return '?'
		}
		return r
	}, host) + "\""
}

// requireToken lets requests pass that carry the admin token as Bearer. Hashes
// are compared, so that the time tells neither the token nor its length. refused is
// told from where the others come.
func requireToken(token credential.Secret, refused func(remote string), next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token.Reveal()))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		if token.Empty() || !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			if refused != nil {
				refused(remoteHost(r))
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="authpool admin"`)
			problem(w, http.StatusUnauthorized, "the admin token is missing or wrong: send \"Authorization: Bearer\" with the content of admin.token in serve's state folder")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// remoteHost is the sender's address without the port, "" when it has none.
func remoteHost(r *http.Request) string {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return addr.Addr().Unmap().String()
}
