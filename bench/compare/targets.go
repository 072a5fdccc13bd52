package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// freeAddress returns a loopback address that nothing listens on.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot find a free port: %w", err)
	}
	return ln.Addr().String(), ln.Close()
}

// nginxConfig is a plain proxy_pass that also swaps the credential. Where a setting makes nginx cheaper it is set:
// no access log, kept connections, and a buffer that holds the largest body.
const nginxConfig = `daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events { worker_connections 2048; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	client_body_buffer_size 512k;
	client_max_body_size 64m;
	keepalive_requests 1000000000;
	upstream provider {
		server %[3]s;
		keepalive 256;
		keepalive_requests 1000000000;
	}
	server {
		listen %[2]s;
		location / {
			proxy_pass http://provider;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header X-Api-Key sk-ant-bench;
		}
	}
}
`

func startNginx(ctx context.Context, p plan, dir, upstream string) (target, error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		if _, statErr := os.Stat("/usr/sbin/nginx"); statErr != nil {
			return target{}, errors.New("cannot find nginx; run .ci/need nginx, or install it (Debian: apt-get install nginx-light)")
		}
		program = "/usr/sbin/nginx"
	}
	dir = filepath.Join(dir, "nginx")
	address, err := freeAddress()
	if err != nil {
		return target{}, err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // nginx' worker runs as another user
		return target{}, fmt.Errorf("cannot prepare nginx: %w", err)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, address, upstream), 0o600); err != nil {
		return target{}, fmt.Errorf("cannot prepare nginx: %w", err)
	}
	proxy, err := startProcess(ctx, p, nil, program, "-c", config, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	if err != nil {
		return target{}, err
	}
	var d net.Dialer
	if err := proxy.ready(ctx, func() error {
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		return target{}, err
	}
	return target{name: "nginx", address: address, key: "agent", proxy: proxy}, nil
}

const authpoolConfig = `listen: %[1]s
admin: {listen: %[2]q}
redis: {listen: "off"}
state_dir: %[3]q
providers:
  anthropic: {base_url: "http://%[4]s", allow_plaintext: true}
subscriptions:
  - {id: bench-1, provider: anthropic, credential: {type: api_key, value: "env:BENCH_KEY"}}
  - {id: bench-2, provider: anthropic, credential: {type: api_key, value: "env:BENCH_KEY"}}
log: {level: warn}
`

func startAuthpool(ctx context.Context, p plan, dir, upstream string) (target, error) {
	dir = filepath.Join(dir, "authpool")
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return target{}, fmt.Errorf("cannot prepare authpool: %w", err)
	}
	program := p.binary
	if program == "" {
		program = filepath.Join(dir, "bin")
		//nolint:gosec // the path is in a temporary folder of ours
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "github.com/authpool/authpool/cmd/authpool")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return target{}, fmt.Errorf("cannot build authpool: %w\n%s", err, out)
		}
	}
	address, err := freeAddress()
	if err != nil {
		return target{}, err
	}
	admin, err := freeAddress()
	if err != nil {
		return target{}, err
	}
	config := filepath.Join(dir, "authpool.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, authpoolConfig, address, admin, state, upstream), 0o600); err != nil {
		return target{}, fmt.Errorf("cannot prepare authpool: %w", err)
	}
	proxy, err := startProcess(ctx, p, []string{"BENCH_KEY=sk-ant-bench"}, program, "serve", "-c", config)
	if err != nil {
		return target{}, err
	}
	if err := proxy.ready(ctx, func() error {
		_, err := get(ctx, "http://"+admin+"/readyz")
		return err
	}); err != nil {
		return target{}, err
	}
	token, err := os.ReadFile(filepath.Join(state, "agent.token"))
	if err != nil {
		proxy.stop()
		return target{}, fmt.Errorf("cannot read the agent token: %w", err)
	}
	return target{
		name: "authpool", address: address, key: strings.TrimSpace(string(token)), proxy: proxy,
		metrics: "http://" + admin + "/metrics",
	}, nil
}

// mallocs returns how many allocations the target has made; 0 when it does not tell.
func (t target) mallocs(ctx context.Context) (float64, error) {
	if t.metrics == "" {
		return 0, nil
	}
	text, err := get(ctx, t.metrics)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "go_memstats_mallocs_total "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s has no go_memstats_mallocs_total", t.metrics)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s %s", url, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}
