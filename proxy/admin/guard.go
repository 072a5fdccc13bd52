package admin

import (
	"context"
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

// doorkeeper knows who holds which token.
type doorkeeper struct {
	tokens  []heldToken
	refused func(remote string, code Code) // nil: nobody hears of it
}

// heldToken is one token, as its hash.
type heldToken struct {
	hash [sha256.Size]byte
	role Role
}

// newDoorkeeper lets in who holds one of the tokens; an empty one lets nobody in.
// Where both are the same, it is the viewer's.
func newDoorkeeper(operator, viewer credential.Secret, refused func(string, Code)) *doorkeeper {
	d := &doorkeeper{refused: refused}
	for _, held := range []struct {
		token credential.Secret
		role  Role
	}{{operator, Operator}, {viewer, Viewer}} {
		if !held.token.Empty() {
			d.tokens = append(d.tokens, heldToken{sha256.Sum256([]byte(held.token.Reveal())), held.role})
		}
	}
	return d
}

// role is that of who sent r; ok is false where no token, or none of ours, came with
// it. Hashes are compared, and all of them, so that the time tells neither a token nor
// its length.
func (d *doorkeeper) role(r *http.Request) (role Role, ok bool) {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(given)))
	for _, held := range d.tokens {
		if subtle.ConstantTimeCompare(got[:], held.hash[:]) == 1 {
			role, ok = held.role, true
		}
	}
	return role, ok && strings.EqualFold(scheme, "Bearer")
}

// known lets requests pass that carry a token as Bearer.
func (d *doorkeeper) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := d.role(r); !ok {
			d.tell(r, CodeToken)
			w.Header().Set("WWW-Authenticate", `Bearer realm="authpool admin"`)
			problem(w, http.StatusUnauthorized, "the admin token is missing or wrong: send \"Authorization: Bearer\" with the content of admin.token in serve's state folder")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// atLeast lets requests pass whose token has the role.
func (d *doorkeeper) atLeast(role Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		has, ok := d.role(r)
		if !ok || has < role {
			d.tell(r, CodeRole)
			coded(w, http.StatusForbidden, CodeRole, "this token may only read: send the operator's, which is in admin.token in serve's state folder")
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), roleKey{}, has)))
	})
}

// roleKey is of the context's value that is the Role of who asks.
type roleKey struct{}

// roleOf is that of who asks.
func roleOf(ctx context.Context) Role {
	role, _ := ctx.Value(roleKey{}).(Role)
	return role
}

func (d *doorkeeper) tell(r *http.Request, code Code) {
	if d.refused != nil {
		d.refused(remoteHost(r), code)
	}
}

// remoteHost is the sender's address without the port, "" when it has none.
func remoteHost(r *http.Request) string {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return addr.Addr().Unmap().String()
}
