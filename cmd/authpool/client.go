package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/admin"
)

// maxAnswer bounds what is read from the admin address: 500 subscriptions, or
// some hundred thousand rows of usage, are far below it.
const maxAnswer = 64 << 20

// clientFlags find a running serve.
type clientFlags struct {
	admin     string
	tokenFile string
	stateDir  string
}

func (f *clientFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.admin, "admin", config.Default().Admin.Listen, "admin address of the running serve (host:port or URL)")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with the admin token (default: $AUTHPOOL_ADMIN_TOKEN, else admin.token in the state folder)")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "state folder of the running serve (default: $XDG_STATE_HOME/authpool)")
}

// client asks a running serve.
type client struct {
	base  *url.URL
	token credential.Secret
	http  *http.Client
}

// newClient resolves flags into a client. It does not connect.
func newClient(p *program, f clientFlags) (*client, error) {
	base, err := adminURL(f.admin)
	if err != nil {
		return nil, err
	}
	token, err := adminToken(p, f)
	if err != nil {
		return nil, err
	}
	return &client{base: base, token: token, http: &http.Client{
		Timeout: 40 * time.Second, // above what the server allows itself
		Transport: &http.Transport{
			Proxy:             nil, // the admin token must not travel through HTTP_PROXY
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// adminURL reads an admin address: host:port, or an http or https URL.
func adminURL(address string) (*url.URL, error) {
	if !strings.Contains(address, "://") {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, wrongf("--admin %q: want host:port or http(s)://host:port", address)
		}
		address = "http://" + dialable(address)
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, wrongf("--admin %q: want host:port or http(s)://host:port", address)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// dialable turns an address that is listened on into one that can be dialled:
// a wildcard host becomes loopback.
func dialable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// adminToken finds the admin token: --token-file, else AUTHPOOL_ADMIN_TOKEN,
// else the state folder.
func adminToken(p *program, f clientFlags) (credential.Secret, error) {
	if f.tokenFile != "" {
		return readToken(f.tokenFile)
	}
	if token := p.getenv("AUTHPOOL_ADMIN_TOKEN"); token != "" {
		return credential.NewSecret(token), nil
	}
	dir, err := statedir.Path(f.stateDir, p.getenv)
	if err != nil {
		return credential.Secret{}, wrongUseError{err}
	}
	token, err := readToken(filepath.Join(dir, statedir.AdminTokenFile))
	if errors.Is(err, os.ErrNotExist) {
		return credential.Secret{}, fmt.Errorf("no admin token in %s: start \"authpool serve\" once, or name its folder by --state-dir or its token by --token-file", dir)
	}
	return token, err
}

// readToken reads a token file: the first line, without white space.
func readToken(path string) (credential.Secret, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return credential.Secret{}, fmt.Errorf("cannot read the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return credential.Secret{}, fmt.Errorf("cannot read the token: %s does not hold exactly one line", path)
	}
	return credential.NewSecret(token), nil
}

// get asks for path and decodes the answer into v. It returns the answer's
// head.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) (http.Header, error) {
	return c.do(ctx, http.MethodGet, path, query, nil, v)
}

// post has path done, without a body, and decodes the answer into v.
func (c *client) post(ctx context.Context, path string, v any) error {
	_, err := c.do(ctx, http.MethodPost, path, nil, nil, v)
	return err
}

// send has path done with body as JSON and decodes the answer into v.
func (c *client) send(ctx context.Context, method, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("cannot ask %s: %w", c.base, err)
	}
	_, err = c.do(ctx, method, path, nil, text, v)
	return err
}

func (c *client) do(ctx context.Context, method, path string, query url.Values, body []byte, v any) (http.Header, error) {
	u, err := c.base.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %s: %w", c.base, err)
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("cannot ask %s: %w", c.base, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach a running serve: %w; start \"authpool serve\" or name its address by --admin", bare(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer of %s: %w", c.base, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(c.base, resp.StatusCode, answer)
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return nil, fmt.Errorf("%s does not answer like an authpool: %w; check --admin", c.base, err)
	}
	return resp.Header, nil
}

// bare takes the method and the URL off an error of net/http.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// refusal turns an answer that is not 200 into an error. A 400 means that the
// question was wrong.
func refusal(base *url.URL, status int, body []byte) error {
	var p admin.Problem
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		return fmt.Errorf("%s answers %d and not like an authpool; check --admin", base, status)
	}
	switch status {
	case http.StatusBadRequest:
		return wrongf("%s", p.Detail)
	case http.StatusUnauthorized:
		return fmt.Errorf("%s refuses the admin token: name the right one by --token-file or the serve's folder by --state-dir", base)
	default:
		return fmt.Errorf("%s: %s", base, p.Detail)
	}
}
