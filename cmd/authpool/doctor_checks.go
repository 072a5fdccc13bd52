package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	list = append(list, d.token(ctx, cfg, dir, base, runs), d.authority(cfg, dir))
	list = append(list, d.shell(cfg, base)...)
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

// token asks the running serve for a path that it refuses to every agent that it knows.
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
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/anthropic/v1/organizations", http.NoBody)
	if err != nil {
		f.Level, f.Says = wrong, err.Error()
		return f
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		f.Level, f.Says = heed, "cannot be tried: "+plainNetError(bare(err)).Error()
		return f
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // the status says all
	if resp.StatusCode == http.StatusUnauthorized || resp.Header.Get("X-Authpool-Request-Id") == "" {
		f.Level, f.Says, f.Fix = wrong, "is not accepted at "+base, "name the state folder of the running serve by --state-dir"
	}
	return f
}

// authoritySoon is how long before its end an authority should be followed by another.
const authoritySoon = 30 * 24 * time.Hour

// authority looks at what agents are to trust. Its times also tell a clock that is wrong.
func (d *doctor) authority(cfg *config.Config, dir string) finding {
	f := finding{What: "certificate authority", Level: wrong}
	if !cfg.Intercept.Enabled {
		f.Level, f.Says = heed, "intercept.enabled is false: there is no proxy mode"
		return f
	}
	path, text, err := authorityBundle(d.program, dir)
	if err != nil {
		f.Level, f.Says = heed, err.Error()
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
		case baseVariable.MatchString(name) && (base == "" || value != base && !strings.HasPrefix(value, base+"/")):
			elsewhere = append(elsewhere, name)
		}
	}
	slices.Sort(own)
	slices.Sort(elsewhere)
	if len(own) > 0 {
		list = append(list, finding{
			"own credentials", heed, "this shell has " + strings.Join(own, ", ") + ", which clients started in it would use themselves",
			"start agents by authpool run, or in a shell with eval \"$(authpool env)\"",
		})
	}
	if len(elsewhere) > 0 {
		list = append(list, finding{
			"base URLs", heed, strings.Join(elsewhere, ", ") + " lead elsewhere than to authpool",
			"start agents by authpool run, or unset them",
		})
	}
	if len(list) == 0 {
		list = append(list, finding{What: "shell", Level: fine, Says: "nothing in it leads past authpool"})
	}
	return list
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
		for name := range settings.Env {
			if credentialVariable.MatchString(name) || baseVariable.MatchString(name) || strings.EqualFold(name, "HTTPS_PROXY") || strings.EqualFold(name, "NO_PROXY") {
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
