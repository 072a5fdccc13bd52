package notify_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
)

var errDialled = errors.New("connected, which is all that this test wants to know")

// reached opens a target that has the address by its name, tests it, and tells what
// was connected to.
func reached(t *testing.T, target notify.Target, addresses ...string) (dialled []string, err error) {
	t.Helper()
	n, err := notify.Open(notify.Options{
		Folder: t.TempDir(),
		Lookup: func(context.Context, string) (out []netip.Addr, _ error) {
			for _, a := range addresses {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		},
		Dial: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			dialled = append(dialled, a.String())
			return nil, errDialled
		},
	}, []notify.Target{target}, new(event.Bus))
	if err != nil {
		return nil, err
	}
	err = n.Test(t.Context(), event.NotificationsTest, -1)[0].Err
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return dialled, err
}

func TestAddresses(t *testing.T) {
	const never, private, public = "never", "private", "public"
	for address, kind := range map[string]string{
		"93.184.216.34": public, "8.8.8.8": public, "172.32.0.1": public, "100.128.0.1": public, "2606:4700::1111": public, "64:ff9b::808:808": public, "2002:808:808::1": public,

		"127.0.0.1": private, "127.9.9.9": private, "10.0.0.1": private, "172.16.0.1": private, "172.31.255.255": private,
		"192.168.1.1": private, "100.64.0.1": private, "::1": private, "fc00::1": private, "fd12:3456::1": private,
		"::ffff:10.0.0.1": private, "::ffff:127.0.0.1": private, "64:ff9b::a00:1": private, "2002:a00:1::": private, "::10.0.0.1": private, "64:ff9b::7f00:1": private,

		"0.0.0.0": never, "0.1.2.3": never, "::": never, "169.254.169.254": never, "169.254.170.2": never, "100.100.100.200": never,
		"192.0.0.192": never, "fd00:ec2::254": never, "fe80::1": never, "fe80::1%eth0": never, "fec0::1": never, "ff02::1": never, "224.0.0.1": never,
		"255.255.255.255": never, "240.0.0.1": never, "198.18.0.1": never, "::ffff:169.254.169.254": never, "64:ff9b::a9fe:a9fe": never, "2002:a9fe:a9fe::": never,
	} {
		for _, allow := range []bool{false, true} {
			want := kind == public || kind == private && allow
			for _, host := range []string{"hooks.example.com", address} {
				if host == address && (strings.Contains(address, "%") || netip.MustParseAddr(address).Unmap().IsLoopback()) {
					continue // a zone is no URL, and this machine's own address is allowed when it is named
				}
				if strings.Contains(host, ":") {
					host = "[" + host + "]"
				}
				target := hook("*")
				target.URL, target.AllowPrivate = "https://"+host+"/T0-secret", allow
				dialled, err := reached(t, target, address)
				if err == nil || errors.Is(err, errDialled) != want || (len(dialled) == 1) != want {
					t.Errorf("%s (%s) by %s, private addresses allowed %t: dialled %v, error %v", address, kind, host, allow, dialled, err)
				}
				if strings.Contains(err.Error(), "T0-secret") {
					t.Errorf("the URL shows in %v", err)
				}
			}
		}
	}
}

// Of several addresses those are tried that are allowed.
func TestAddressesOfOneName(t *testing.T) {
	target := hook("*")
	target.URL = "https://hooks.example.com:8443/"
	dialled, _ := reached(t, target, "10.0.0.1", "93.184.216.34", "169.254.169.254", "::ffff:93.184.216.35")
	if want := []string{"93.184.216.34:8443", "93.184.216.35:8443"}; !slices.Equal(dialled, want) {
		t.Errorf("dialled %v, want %v", dialled, want)
	}
	if _, err := reached(t, target); err == nil || !strings.Contains(err.Error(), "has no address") {
		t.Errorf("without addresses: %v", err)
	}
}

// A name of this machine's leads nowhere else, since nothing is encrypted there.
func TestLocalhostIsThisMachine(t *testing.T) {
	target := hook("*")
	target.URL = "http://localhost:9000/"
	if dialled, _ := reached(t, target, "127.0.0.1"); !slices.Equal(dialled, []string{"127.0.0.1:9000"}) {
		t.Errorf("dialled %v", dialled)
	}
	if dialled, err := reached(t, target, "93.184.216.34"); len(dialled) != 0 || err == nil {
		t.Errorf("dialled %v, %v", dialled, err)
	}
}

// A name that means another address by the time of the connection gains nothing: it is
// looked up once, and what was judged is connected to.
func TestNameIsRebound(t *testing.T) {
	var lookups int
	var dialled []string
	target := hook("*")
	target.URL = "https://rebind.example.com/"
	n, err := notify.Open(notify.Options{
		Folder: t.TempDir(),
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			lookups++
			if lookups%2 == 1 {
				return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
		},
		Dial: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			dialled = append(dialled, a.String())
			return nil, errDialled
		},
	}, []notify.Target{target}, new(event.Bus))
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		n.Test(t.Context(), event.NotificationsTest, -1)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if want := []string{"93.184.216.34:443", "93.184.216.34:443"}; lookups != 4 || !slices.Equal(dialled, want) {
		t.Errorf("%d look-ups, dialled %v", lookups, dialled)
	}
}

func TestTargetsThatAreRefused(t *testing.T) {
	for text, change := range map[string]func(*notify.Target){
		"unencrypted":                           func(c *notify.Target) { c.URL = "http://hooks.example.com/T0-secret" },
		"is not the URL":                        func(c *notify.Target) { c.URL = "https://user:T0-secret@hooks.example.com/" },
		"notifications[0]: url: is not the URL": func(c *notify.Target) { c.URL = "T0-secret" },
		"url: would be":                         func(c *notify.Target) { c.URL = "ftp://127.0.0.1/T0-secret" },
		"allow_private":                         func(c *notify.Target) { c.URL = "https://10.1.2.3/T0-secret" },
		"pin_sha256":                            func(c *notify.Target) { c.Pin = "T0-secret" },
		"pin_sha256: is not":                    func(c *notify.Target) { c.Pin = "c2hvcnQ=" },
	} {
		target := hook("*")
		change(&target)
		_, err := notify.Open(notify.Options{Folder: t.TempDir()}, []notify.Target{target}, new(event.Bus))
		if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "T0-secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
	_, err := notify.Open(notify.Options{Folder: t.TempDir()}, []notify.Target{hook("a"), hook("b")}, new(event.Bus))
	if err == nil || !strings.Contains(err.Error(), "notifications[1]: is the target of notifications[0]") {
		t.Errorf("twice the same: %v", err)
	}
}

// The certificate must be valid, and have the pinned key where one is pinned.
func TestCertificates(t *testing.T) {
	var posts atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { posts.Add(1) }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(server.Certificate().RawSubjectPublicKeyInfo)
	right := base64.StdEncoding.EncodeToString(sum[:])
	sum[0]++
	wrong := base64.StdEncoding.EncodeToString(sum[:])
	for _, c := range []struct {
		host, pin, fails string
	}{
		{"127.0.0.1", "", ""},
		{"example.com", "", ""},
		{"127.0.0.1", right, ""},
		{"example.com", right, ""},
		{"127.0.0.1", wrong, "pin_sha256"},
		{"other.test", "", "certificate"},
		{"other.test", right, "certificate"},
	} {
		target := hook("*")
		target.URL, target.Pin, target.AllowPrivate = "https://"+c.host+":"+u.Port()+"/", c.pin, true
		n, err := notify.Open(notify.Options{
			Folder: t.TempDir(),
			Lookup: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
			},
		}, []notify.Target{target}, new(event.Bus))
		if err != nil {
			t.Fatal(err)
		}
		before := posts.Load()
		r := n.Test(t.Context(), event.NotificationsTest, -1)[0]
		switch {
		case c.fails == "" && (r.Err != nil || posts.Load() != before+1):
			t.Errorf("%s, pin %q: %v", c.host, c.pin, r.Err)
		case c.fails != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), c.fails) || posts.Load() != before):
			t.Errorf("%s, pin %q: %v after %d posts", c.host, c.pin, r.Err, posts.Load()-before)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Plain TLS 1.1 is too old.
func TestOldTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10} //nolint:gosec // this is what it is about
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	defer server.Close()
	target := hook("*")
	target.URL = server.URL
	n, err := notify.Open(notify.Options{Folder: t.TempDir()}, []notify.Target{target}, new(event.Bus))
	if err != nil {
		t.Fatal(err)
	}
	if r := n.Test(t.Context(), event.NotificationsTest, -1)[0]; r.Status != 0 || r.Err == nil {
		t.Errorf("status %d, %v", r.Status, r.Err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
