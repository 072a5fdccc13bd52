package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/proxy"
	"github.com/authpool/authpool/proxy/admin"
)

// examine looks at all that is not a client: what runs, what is trusted, and what the
// shell has.
func (d *doctor) examine(ctx context.Context, cfg *config.Config, dir string) []finding {
	base, runs, list := d.serve(ctx, cfg, dir)
	list = append(list, d.token(ctx, cfg, dir, base, runs), d.authority(cfg, dir, runs))
	list = append(list, d.shell(cfg, base)...)
	if runs && cfg.Agents.Auth == "token" {
		list = append(list, d.shellTokens(ctx, dir, base)...)
	}
	list = append(list, d.shellTrust(dir, base)...)
	return append(list, d.settings()...)
}

// serve tells whether a serve runs, and at which URL for agents.
func (d *doctor) serve(ctx context.Context, cfg *config.Config, dir string) (base string, runs bool, list []finding) {
	f := finding{What: "serve", Level: wrong}
	base, err := agentBaseURL(cfg)
	if err != nil {
		f.Says, f.Fix = "agents cannot reach it", err.Error()
		return "", false, []finding{f}
	}
	if !answers(cfg.Admin.Listen) {
		f.Level, f.Says, f.Fix = heed, "none runs at "+cfg.Admin.Listen, "authpool serve, or authpool run, which starts one while it is needed"
		return base, false, []finding{f}
	}
	var status admin.Status
	asked, err := newClient(d.program, clientFlags{admin: cfg.Admin.Listen, stateDir: dir})
	if err == nil {
		status, err = asked.status(ctx)
	}
	if err != nil {
		f.Says, f.Fix = "something runs at "+cfg.Admin.Listen+", but: "+err.Error(), "name the folder of the running serve by --state-dir, or another address by --admin"
		return base, false, []finding{f}
	}
	ready := 0
	var not []string
	for i := range status.Subscriptions {
		s := &status.Subscriptions[i]
		if s.State == "ready" {
			ready++
			continue
		}
		not = append(not, strings.TrimSpace(s.ID+" is "+s.State+" "+s.Reason))
	}
	f.Level, f.Says = fine, fmt.Sprintf("runs at %s, %d of %s ready", cfg.Admin.Listen, ready, plural(int64(len(status.Subscriptions)), "subscription"))
	switch {
	case ready == 0:
		f.Level, f.Fix = wrong, "set ANTHROPIC_API_KEY or OPENAI_API_KEY where serve starts, or name subscriptions in its config; authpool status tells more"
	case !status.Redis.OK:
		f.Level, f.Says, f.Fix = heed, f.Says+", but Redis is away", "authpool status tells more; usage waits in the journal"
	}
	if len(not) > 0 {
		f.Says += " (" + strings.Join(not, "; ") + ")"
	}
	list = append(list, f)
	front := finding{What: "address for agents", Level: fine, Says: base}
	if err := reachable(base); err != nil {
		front.Level, front.Says, front.Fix = wrong, "nothing listens at "+base, "name the address of the running serve by --listen, or its config by -c"
	}
	return base, true, append(list, front)
}

// token tells whether the running serve takes the token of the state folder.
func (d *doctor) token(ctx context.Context, cfg *config.Config, dir, base string, runs bool) finding {
	f := finding{What: "agent token", Level: fine, Says: "is accepted"}
	if cfg.Agents.Auth == "none" {
		f.Says = "none is asked for"
		return f
	}
	token, err := stateToken(dir, statedir.AgentTokenFile)
	switch {
	case err != nil && runs:
		f.Level, f.Says, f.Fix = wrong, "cannot be read", err.Error()
		return f
	case err != nil:
		f.Level, f.Says = heed, "none was made yet"
		return f
	case !runs:
		f.Says = "is there, and cannot be tried without a serve"
		return f
	}
	switch accepted, err := accepts(ctx, base, token); {
	case err != nil:
		f.Level, f.Says = heed, "cannot be tried: "+plainNetError(bare(err)).Error()
	case !accepted:
		f.Level, f.Says, f.Fix = wrong, "is not accepted at "+base, "name the state folder of the running serve by --state-dir"
	}
	return f
}

// accepts asks the serve at base, with an agent's token, for a path that it refuses to
// every agent that it knows.
func accepts(ctx context.Context, base, token string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/anthropic/v1/organizations", http.NoBody)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // the status says all
	return resp.StatusCode != http.StatusUnauthorized && resp.Header.Get("X-Authpool-Request-Id") != "", nil
}

// authoritySoon is how long before its end an authority should be followed by another.
const authoritySoon = 30 * 24 * time.Hour

// authority looks at what agents are to trust. Its times also tell a clock that is wrong.
func (d *doctor) authority(cfg *config.Config, dir string, runs bool) finding {
	f := finding{What: "certificate authority", Level: wrong}
	if !cfg.Intercept.Enabled {
		f.Level, f.Says = heed, "intercept.enabled is false: there is no proxy mode"
		return f
	}
	path, text, err := authorityBundle(d.program, dir)
	if err != nil {
		f.Says = err.Error()
		if runs {
			f.Fix = "start serve anew, which writes it"
		} else {
			f.Level = heed // serve makes one
		}
		return f
	}
	var end time.Time
	now := time.Now()
	started := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			f.Says, f.Fix = path+" cannot be read: "+err.Error(), "start serve anew, which writes it"
			return f
		}
		started = started || !now.Before(cert.NotBefore)
		if cert.NotAfter.After(end) {
			end = cert.NotAfter
		}
	}
	switch {
	case end.IsZero():
		f.Says, f.Fix = path+" holds no certificate", "start serve anew, which writes it"
	case !started:
		f.Says, f.Fix = "begins in the future: the clock of this machine is wrong, or was when it was made", "set the clock"
	case now.After(end):
		f.Says, f.Fix = "has ended on "+end.Format(time.DateOnly), "authpool ca rotate --overlap 0, and start agents anew"
	case now.Add(authoritySoon).After(end):
		f.Level, f.Says, f.Fix = heed, "ends on "+end.Format(time.DateOnly), "authpool ca rotate"
	default:
		f.Level, f.Says = fine, path+", until "+end.Format(time.DateOnly)
	}
	return f
}

// shell looks at variables that lead clients past authpool.
func (d *doctor) shell(cfg *config.Config, base string) []finding {
	var list []finding
	if host, by := bypassed(d.program); host != "" {
		list = append(list, finding{"NO_PROXY", wrong, by + " keeps " + host + " from every proxy", "take " + by + " out of NO_PROXY"})
	}
	var own, elsewhere []string
	secrets := cfg.SecretVariables()
	for _, pair := range d.environ {
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case value == "" || strings.HasPrefix(value, "apa_") || value == proxy.AnonymousAgent:
		case credentialVariable.MatchString(name), slices.Contains(secrets, name):
			own = append(own, name)
		case baseVariable.MatchString(name) && !leadsTo(base, value):
			elsewhere = append(elsewhere, name)
		}
	}
	slices.Sort(own)
	slices.Sort(elsewhere)
	if len(own) > 0 {
		list = append(list, finding{
			"own credentials", heed, "this shell has " + strings.Join(own, ", ") + ", which clients started in it could use themselves",
			"start agents by authpool run, or in a shell with eval \"$(authpool env)\"",
		})
	}
	if len(elsewhere) > 0 {
		list = append(list, finding{
			"base URLs", heed, strings.Join(elsewhere, ", ") + " lead elsewhere than to authpool",
			"start agents by authpool run, or unset them",
		})
	}
	if clouds := cloudsAround(d.program, base); len(clouds) > 0 {
		list = append(list, finding{
			"clouds", heed, "with " + strings.Join(clouds, ", ") + " Claude Code asks a cloud, and heeds no base URL of authpool's",
			"unset that, or authpool run --mode proxy -- claude",
		})
	}
	if len(list) == 0 {
		list = append(list, finding{What: "shell", Level: fine, Says: "nothing in it leads past authpool"})
	}
	return list
}

// shellTokens looks at the tokens that agents started in this shell would show to the
// serve at base: they outlive what they were made for.
func (d *doctor) shellTokens(ctx context.Context, dir, base string) []finding {
	good, _ := stateToken(dir, statedir.AgentTokenFile) // looked at before
	by := map[string][]string{}                         // the variables of each token
	for _, pair := range d.environ {
		name, value, _ := strings.Cut(pair, "=")
		if u, ok := proxyAt(name, value, base); ok {
			value, _ = u.User.Password()
		} else if !credentialVariable.MatchString(name) {
			continue
		}
		if token, _, _ := strings.Cut(value, "."); strings.HasPrefix(token, "apa_") && token != good {
			by[token] = append(by[token], name)
		}
	}
	var refused []string
	for token, names := range by {
		if accepted, err := accepts(ctx, base, token); err == nil && !accepted {
			refused = append(refused, names...)
		}
	}
	if len(refused) == 0 {
		return nil
	}
	slices.Sort(refused)
	return []finding{{
		"tokens of the shell", wrong, strings.Join(refused, ", ") + ": the token in it is not accepted at " + base,
		"eval \"$(authpool env)\", with --mode proxy where you use that",
	}}
}

// shellTrust looks at whether clients in a shell whose proxy is authpool trust what it
// shows them. Which of the variables each of them reads is not known, so that every one
// that is set has to be right.
func (d *doctor) shellTrust(dir, base string) []finding {
	proxied := slices.ContainsFunc([]string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"}, func(name string) bool {
		_, ok := proxyAt(name, d.getenv(name), base)
		return ok
	})
	_, own, err := authorityBundle(d.program, dir)
	if !proxied || err != nil {
		return nil
	}
	holds := func(path string) bool {
		text, err := os.ReadFile(path)
		return err == nil && shareCertificate(own, text)
	}
	trusted := holds(firstFile(systemRoots))
	var without []string
	for _, v := range (way{}).trustVariables() {
		path := d.getenv(v.name)
		switch {
		case path == "":
		case holds(path):
			trusted = true
		default:
			without = append(without, v.name)
		}
	}
	f := finding{What: "trust of the shell", Level: wrong, Fix: "eval \"$(authpool env --mode proxy)\""}
	switch {
	case len(without) > 0:
		f.Says = "its proxy is authpool, whose certificate authority is not in the file of " + strings.Join(without, ", ")
	case !trusted:
		f.Says = "its proxy is authpool, and no variable names authpool's certificate authority"
	default:
		return nil
	}
	return []finding{f}
}

// proxyAt returns what a variable says when it names the authpool at base as the proxy.
func proxyAt(name, value, base string) (*url.URL, bool) {
	switch strings.ToUpper(name) {
	case "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY":
	default:
		return nil, false
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return nil, false
	}
	_, address, _ := strings.Cut(base, "://")
	return u, u.Host == address
}

// shareCertificate tells whether two texts in PEM have a certificate in common.
func shareCertificate(a, b []byte) bool {
	for one, rest := pem.Decode(a); one != nil; one, rest = pem.Decode(rest) {
		for other, rest := pem.Decode(b); other != nil; other, rest = pem.Decode(rest) {
			if bytes.Equal(one.Bytes, other.Bytes) {
				return true
			}
		}
	}
	return false
}

// settings looks at configs of clients that rule over the environment.
func (d *doctor) settings() []finding {
	var list []finding
	home := d.getenv("HOME")
	paths := []string{filepath.Join(home, ".claude", "settings.json"), filepath.Join(".claude", "settings.json"), filepath.Join(".claude", "settings.local.json")}
	if folder := d.getenv("CLAUDE_CONFIG_DIR"); folder != "" {
		paths[0] = filepath.Join(folder, "settings.json")
	}
	for _, path := range paths {
		var settings struct {
			Env          map[string]any `json:"env"`
			APIKeyHelper string         `json:"apiKeyHelper"`
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && json.Unmarshal(text, &settings) != nil {
			continue // Claude Code tells of what it cannot read
		}
		var names []string
		if settings.APIKeyHelper != "" {
			names = append(names, "apiKeyHelper")
		}
		for name, value := range settings.Env {
			if credentialVariable.MatchString(name) || baseVariable.MatchString(name) || isCloud(name, fmt.Sprint(value)) || strings.EqualFold(name, "HTTPS_PROXY") || strings.EqualFold(name, "NO_PROXY") {
				names = append(names, "env."+name)
			}
		}
		slices.Sort(names)
		if len(names) > 0 {
			list = append(list, finding{"claude settings", wrong, path + " sets " + strings.Join(names, ", ") + ", which rule over authpool's variables", "take them out of that file"})
		}
	}
	if by := geminiLogin(filepath.Join(home, ".gemini", "settings.json")); by != "" && by != geminiByKey {
		list = append(list, finding{"gemini settings", heed, "Gemini CLI logs in by " + by + ", past authpool", "choose \"Use Gemini API Key\" at its /auth"})
	}
	return list
}
