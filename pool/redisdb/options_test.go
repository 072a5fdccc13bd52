package redisdb

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/pool/credential"
)

func TestPlan(t *testing.T) {
	url := credential.NewSecret
	tests := []struct {
		name string
		opts Options
		want plan
	}{
		{"nothing", Options{}, plan{mode: Embedded}},
		{"the word", Options{URL: url("embedded")}, plan{mode: Embedded}},
		{"one server", Options{URL: url("redis://h:1")}, plan{mode: Single, addrs: []string{"h:1"}}},
		{"default port", Options{URL: url("redis://h/3")}, plan{mode: Single, addrs: []string{"h:6379"}, db: 3}},
		{"ipv6", Options{URL: url("redis://[::1]")}, plan{mode: Single, addrs: []string{"[::1]:6379"}}},
		{
			"tls and login",
			Options{URL: url("rediss://u:p%40ss@h:1/")},
			plan{mode: Single, addrs: []string{"h:1"}, tls: true, username: "u", password: "p@ss"},
		},
		{"socket", Options{URL: url("unix:///run/redis.sock")}, plan{mode: Single, addrs: []string{"/run/redis.sock"}}},
		{
			"password beside the url wins",
			Options{URL: url("redis://u:old@h:1"), Password: url("new")},
			plan{mode: Single, addrs: []string{"h:1"}, username: "u", password: "new"},
		},
		{"one address", Options{Addresses: []string{"a:1"}}, plan{mode: Single, addrs: []string{"a:1"}}},
		{"several addresses", Options{Addresses: []string{"a:1", "b:2"}}, plan{mode: Cluster, addrs: []string{"a:1", "b:2"}}},
		{"one address of a cluster", Options{Mode: Cluster, Addresses: []string{"a:1"}}, plan{mode: Cluster, addrs: []string{"a:1"}}},
		{"cluster by url", Options{URL: url("rediss://a:1,b:2")}, plan{mode: Cluster, addrs: []string{"a:1", "b:2"}, tls: true}},
		{"cluster by url and query", Options{URL: url("redis://a:1?mode=cluster")}, plan{mode: Cluster, addrs: []string{"a:1"}}},
		{"sentinels", Options{Master: "m", Addresses: []string{"a:1", "b:2"}}, plan{mode: Sentinel, master: "m", addrs: []string{"a:1", "b:2"}}},
		{
			"sentinels by url",
			Options{URL: url("redis://a,b:2/1?master=m")},
			plan{mode: Sentinel, master: "m", db: 1, addrs: []string{"a:26379", "b:2"}},
		},
		{
			"sentinels with a login of their own",
			Options{URL: url("redis://u:p@a?master=m&sentinel_username=su&sentinel_password=s%40p")},
			plan{
				mode: Sentinel, master: "m", addrs: []string{"a:26379"}, username: "u", password: "p",
				sentinelUsername: "su", sentinelPassword: "s@p",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.opts.plan()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(plan{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWrongOptions(t *testing.T) {
	const secret = "hunter2hunter2"
	tests := []struct {
		opts Options
		key  string
	}{
		{Options{Mode: "replicated", Addresses: []string{"a:1"}}, "redis.mode"},
		{Options{Mode: Embedded, Addresses: []string{"a:1"}}, "redis.mode"},
		{Options{Mode: Single}, "redis.mode"},
		{Options{Mode: Single, Addresses: []string{"a:1", "b:1"}}, "redis.addresses"},
		{Options{Addresses: []string{"a"}}, "redis.addresses"},
		{Options{Mode: Sentinel, Addresses: []string{"a:1"}}, "redis.master"},
		{Options{Mode: Single, Master: "m", Addresses: []string{"a:1"}}, "redis.master"},
		{Options{URL: credential.NewSecret("redis://a:1"), Addresses: []string{"a:1"}}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://u:" + secret + "@")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://u:%zz" + secret + "@h")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://u:" + secret + "@h/x")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://u:" + secret + "@h?db=1")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://::1")}, "redis.url"},
		{Options{URL: credential.NewSecret("http://u:" + secret + "@h")}, "redis.url"},
		{Options{URL: credential.NewSecret(secret)}, "redis.url"},
		{Options{URL: credential.NewSecret("unix://run/redis.sock")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://a:1/2?mode=cluster")}, "redis.url"},
		{Options{Mode: Single, URL: credential.NewSecret("redis://a:1?mode=cluster")}, "redis.mode"},
		{Options{Master: "m", URL: credential.NewSecret("redis://a:1?master=n")}, "redis.master"},
		{Options{URL: credential.NewSecret("redis://a:1,b:x")}, "redis.url"},
		{Options{URL: credential.NewSecret("redis://a:1?sentinel_password=" + secret)}, "redis.url"},
	}
	for _, tt := range tests {
		_, err := Open(t.Context(), tt.opts)
		if err == nil || !strings.HasPrefix(err.Error(), tt.key+":") && !strings.HasPrefix(err.Error(), tt.key+" ") {
			t.Errorf("%q: got %v, want a fault of %s", tt.opts.URL.Reveal(), err, tt.key)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	opts := Options{URL: credential.NewSecret("redis://u:canary-1@h"), Password: credential.NewSecret("canary-2")}
	text, err := json.Marshal(opts.Password)
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf("%v %+v %#v %s %q %x %s", opts, opts, opts, opts.URL, opts.URL, opts.Password, text)
	if strings.Contains(shown, "canary") || strings.Contains(shown, fmt.Sprintf("%x", "canary-2")) {
		t.Errorf("a secret is in %s", shown)
	}
}

// These settings are what keeps a bad Redis from holding callers up; each default
// of the library does.
func TestClientSettings(t *testing.T) {
	p, err := Options{Addresses: []string{"a:1"}}.plan()
	if err != nil {
		t.Fatal(err)
	}
	u := p.universal()
	if !u.ContextTimeoutEnabled {
		t.Error("deadlines of contexts are not obeyed")
	}
	if u.MaxRetries != -1 || u.DialerRetries != 1 {
		t.Errorf("%d retries, %d dials", u.MaxRetries, u.DialerRetries)
	}
	if u.DialTimeout > 2*time.Second || u.ReadTimeout > 5*time.Second || u.PoolTimeout > 2*time.Second {
		t.Error("time-outs are long")
	}
}
