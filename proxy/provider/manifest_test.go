package provider_test

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

// TestManifestTable shows each change of what the manifest means, as it is understood.
func TestManifestTable(t *testing.T) {
	same(t, filepath.Join("testdata", "manifest.golden"), provider.ManifestTable())
}

func TestManifestRefusesWhatItDoesNotKnow(t *testing.T) {
	f := func(rows, want string) {
		t.Helper()
		err := provider.ParseManifest("version: 1\n" + rows)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want an error about %q", rows, err, want)
		}
	}
	row := func(text string) string { return "rows:\n  - {" + text + "}\n" }
	if err := provider.ParseManifest("version: 1\n" + row("path: a, action: free")); err != nil {
		t.Error(err)
	}
	f(row("path: a, action: free, colour: red"), "colour")
	f("colours: []\n", "colours")
	f(row("path: a, path: b, action: free"), "path")
	f(row("path: a"), "action")
	f(row("path: a, action: inyect"), "inyect")
	f(row("path: a, action: unknown"), "unknown action")
	f(row("path: a, action: inject"), "dialect")
	f(row("path: a, action: inject, dialect: latin"), "latin")
	f(row("path: a, action: free, dialect: openai-chat"), "free is not counted")
	f(row("path: a, action: local, dialect: openai-chat"), "local is not counted")
	f(row("path: a/**, action: refuse"), "why")
	f(row("path: a/**, action: refuse, why: spite"), "why")
	f(row("path: a, action: free, why: keys"), "why")
	f(row("path: a, action: refuse, why: keys"), "all that is below")
	f(row("path: a/**, methods: [GET], action: refuse, why: keys"), "all methods")
	f(row("path: \"*/a/**\", action: refuse, why: keys"), "begins with a word")
	f(row("path: a, methods: [get], action: free"), "get")
	f(row("path: a, methods: [GET, GET], action: free"), "twice")
	f(row("path: a, action: free, families: [openia]"), "openia")
	f(row("path: a, action: free, families: [openai, openai]"), "twice")
	f(row("path: a, action: free, families: [openai], not_families: [azure]"), "beside each other")
	f(row("path: a, action: free, lists: true"), "lists")
	f(row("path: a, action: free, named: 1"), "named")
	f(row("path: a, action: free, shape: round"), "round")
	for _, path := range []string{"''", "a//b", "a/**/b", "a*b*", "a/%61", "a/..", "a/.", "a.", "'a;b'", "'a#b'", "a?b", `'a\b'`, "'a b'", strings.Repeat("a/", 16) + "a", strings.Repeat("a", 65)} {
		f(row("path: "+path+", action: free"), "rows")
	}
	again := func(first, second string) string {
		return "rows:\n  - {path: a/b, action: free, " + first + "}\n  - {path: A/b, action: free, " + second + "}\n"
	}
	f(again("methods: [GET]", "methods: [POST, GET]"), "already")
	f(again("methods: [GET]", "name: x"), "already")
	f(again("families: [openai]", "name: x"), "already")
	f(again("providers: [groq]", "families: [openai]"), "already")
	if err := provider.ParseManifest("version: 1\n" + again("methods: [GET]", "methods: [POST]")); err != nil {
		t.Error(err)
	}
	if err := provider.ParseManifest("version: 1\n" + again("families: [openai]", "not_families: [openai]")); err != nil {
		t.Error(err)
	}
	f("apis:\n  - {path: v1/**}\n", "mount")
	f("apis:\n  - {path: /v1}\n", "mount")
	f("resources:\n  - {prefix: a, keep: year}\n", "too short")
	f("resources:\n  - {prefix: ab_, keep: day}\n", "day")
	f("resources:\n  - {prefix: ab_, keep: year}\n  - {prefix: ab_c, keep: month}\n", "already")
	for _, text := range []string{"", "version: 2\n", "version: one\n", "rows: []\n"} {
		if err := provider.ParseManifest(text); err == nil {
			t.Errorf("%q was taken for a manifest", text)
		}
	}
}

// refused are paths that get no credential, at each provider where that is so. They are
// written down beside the manifest, so that a row which is lost is missed.
var refused = map[string][]string{
	"anthropic": {
		"/v1/organizations", "/v1/organizations/users", "/v1/user_profiles/p1", "/v1/tunnels/t1/certificates", "/v1/oauth/token", "/api/oauth/profile",
		"/v1/code/auth/refresh", "/v1/code/runners/self-hosted/runners/register", "/v1/environments/bridge", "/api/organizations/o1/usage", "/v1/billing",
	},
	"openai": {
		"/v1/organization/users", "/v1/organization/admin_api_keys", "/v1/projects/p1", "/v1/admin/x", "/v1/vendor/api_keys", "/v1/x/api-keys", "/x/apikeys", "/v1/x/admin_api_keys",
		"/dashboard/billing/usage", "/v1/dashboard/x", "/v1/billing/x", "/oauth2/token", "/v1/realtime/client_secrets", "/v1/realtime/client_secret",
		"/v1/realtime/sessions", "/v1/realtime/transcription_sessions", "/v1/chatkit/sessions/s1/cancel",
	},
	"gemini": {"/v1beta/auth_tokens", "/v1alpha/auth_tokens/t1", "/v1beta/tunedModels/m:setIamPolicy"},
	"vertex": {"/v1/projects/p/locations/l/endpoints/1:setIamPolicy"},
	"azure": {
		"/openai/realtimeapi/sessions", "/openai/v1/realtime/client_secrets", "/openai/organization/x",
		"/api/projects/p/connections/c/getConnectionWithCredentials", "/api/projects/p/datasets/d/versions/1/credentials",
		"/api/projects/p/datasets/d/versions/1/startPendingUpload", "/api/projects/p/models/m/versions/1/startPendingUpload",
	},
	"bedrock":    {"/v1/projects", "/openai/v1/organization/x"},
	"cohere":     {"/v1/organizations", "/v1/api_keys"},
	"voyage":     {"/v1/organization"},
	"groq":       {"/openai/v1/organization/x", "/openai/v1/projects/p"},
	"openrouter": {"/api/v1/keys", "/api/v1/keys/k1", "/api/v1/auth/keys", "/api/v1/credits", "/api/v1/organization/members"},
	"perplexity": {"/generate_auth_token", "/revoke_auth_token"},
	"deepseek":   {"/user/balance"},
	"fireworks":  {"/v1/accounts/a/users", "/v1/accounts/a/users/u/apiKeys", "/v1/accounts/a/secrets/s"},
	"ollama": {
		"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0", "/api/me", "/api/signout", "/api/user/keys/k",
	},
	"gateway": {"/v1/organizations", "/v1/key/api_keys"}, // whose base URL has a path
}

// refusedEverywhere are refused at every provider.
var refusedEverywhere = []string{
	"/v1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/api_keys", // as deep as is looked
	"/v1/organizations", "/v1/organization/x", "/v1/admin", "/v1/billing/x", "/v1/oauth/token", "/v1/keys", "/v1/auth/keys", "/v1/x/client_secrets", "/v1/x/y/api_keys", "/organizations",
}

// everyone are the names of all providers of the tests.
var everyone = []string{
	"anthropic", "openai", "gemini", "azure", "azure-asking", "vertex", "bedrock", "cohere", "ollama", "voyage", "groq", "openrouter", "perplexity", "deepseek",
	"fireworks", "huggingface", "versioned", "gateway", "local-vllm",
}

// Each of them is refused whatever way it is spelled, in both modes, and so is all that
// is below.
func TestRefusedHoweverItIsSpelled(t *testing.T) {
	each := func(path string, change func(segment string) string) string {
		segments := strings.Split(path, "/")
		for i := range segments[1:] {
			segments[i+1] = change(segments[i+1])
		}
		return strings.Join(segments, "/")
	}
	escape := func(text string, only int) string {
		var b strings.Builder
		for i, c := range []byte(text) {
			if only < 0 || i == only {
				fmt.Fprintf(&b, "%%%02x", c)
			} else {
				b.WriteByte(c)
			}
		}
		return b.String()
	}
	spellings := map[string]func(path string) string{
		"as it is":               func(p string) string { return p },
		"below":                  func(p string) string { return p + "/x/y" },
		"far below":              func(p string) string { return p + strings.Repeat("/x", 20) },
		"upper case":             strings.ToUpper,
		"an escape":              func(p string) string { return each(p, func(s string) string { return escape(s, 0) }) },
		"escapes alone":          func(p string) string { return each(p, func(s string) string { return strings.ToUpper(escape(s, -1)) }) },
		"an escape of an escape": func(p string) string { return each(p, func(s string) string { return escape(escape(s, 1), 0) }) },
		"three times escaped": func(p string) string {
			return each(p, func(s string) string { return strings.ReplaceAll(escape(s, 0), "%", "%2525") })
		},
		"escaped slashes":       func(p string) string { return "/" + strings.ReplaceAll(p[1:], "/", "%2f") },
		"twice escaped slashes": func(p string) string { return "/" + strings.ReplaceAll(p[1:], "/", "%252F") },
		"doubled slashes":       func(p string) string { return strings.ReplaceAll(p, "/", "//") },
		"a slash at the end":    func(p string) string { return p + "/" },
		"slashes at the end":    func(p string) string { return p + "/%2f/" },
		"parameters":            func(p string) string { return each(p, func(s string) string { return s + ";a=b" }) },
		"an empty parameter":    func(p string) string { return p + ";" },
		"an escaped parameter":  func(p string) string { return each(p, func(s string) string { return s + "%3Bx" }) },
		"a slash in parameters": func(p string) string { return p + ";a/b" },
		"dots at the end":       func(p string) string { return each(p, func(s string) string { return s + ".." }) },
		"an escaped dot":        func(p string) string { return p + "%2e" },
		"spaces":                func(p string) string { return each(p, func(s string) string { return "%20" + s + "%20" }) },
		"tabs":                  func(p string) string { return each(p, func(s string) string { return s + "%09" }) },
		"a segment of one dot":  func(p string) string { return strings.ReplaceAll(p, "/", "/./") },
		"there and back":        func(p string) string { return "/v1/x/.." + p },
		"there and back, escaped": func(p string) string {
			return "/v1/messages/%2e%2e/%2e%2e" + p
		},
		"backslashes":         func(p string) string { return "/" + strings.ReplaceAll(p[1:], "/", `\`) },
		"escaped backslashes": func(p string) string { return "/" + strings.ReplaceAll(p[1:], "/", "%5c") },
		"a zero at the end":   func(p string) string { return p + "%00" },
		"a fragment":          func(p string) string { return p + "%23x" },
		"a query":             func(p string) string { return p + "%3fx" },
		"overlong UTF-8":      func(p string) string { return "/" + strings.ReplaceAll(p[1:], "/", "%c0%af") },
		"a broken escape":     func(p string) string { return p + "%" },
		"a hidden end":        func(p string) string { return p + "%0d%0aX:y" },
	}
	for _, name := range everyone {
		p := registry.Provider(name)
		if p == nil {
			t.Fatalf("the tests know no provider %s", name)
		}
		standard := uint16(80)
		if p.TLS {
			standard = 443
		}
		host, ok := provider.ParseAuthority(p.Host, standard)
		if !ok {
			t.Fatalf("%s is at %s", name, p.Host)
		}
		for _, path := range slices.Concat(refused[name], refusedEverywhere) {
			for how, spell := range spellings {
				sent := spell(path)
				_, err := registry.Route([]byte("/"+name+sent), nil)
				_, proxied := registry.RouteAt(host, []byte(p.Prefix+sent))
				for mode, err := range map[string]error{"base URL": err, "proxy": proxied} {
					var refusal *provider.Refusal
					if !errors.As(err, &refusal) || refusal.Status != 403 && refusal.Status != 400 {
						t.Errorf("%s %s, %s, by %s: got %v, want a refusal", name, sent, how, mode, err)
						continue
					}
					if refusal.Status == 403 && (refusal.Endpoint == nil || refusal.Endpoint.Action != provider.Refuse) {
						t.Errorf("%s %s, by %s: the refusal names %v", name, sent, mode, refusal.Endpoint)
					}
				}
			}
		}
	}
}

// TestEveryRefusalIsMissed takes each row that refuses out of the manifest: a path of the
// list is then let through.
func TestEveryRefusalIsMissed(t *testing.T) {
	patterns := provider.Refusals()
	if len(patterns) < 40 {
		t.Fatalf("the manifest refuses only %q", patterns)
	}
	for _, pattern := range patterns {
		missed := false
		for name, paths := range refused {
			p := registry.Provider(name)
			missed = missed || slices.ContainsFunc(paths, func(path string) bool { return !provider.RefusesWithout(pattern, p, path) })
		}
		if !missed {
			t.Errorf("without %s all that is listed is refused, too: list a path that only it refuses", pattern)
		}
	}
}

// readings are all ways in which a server might read a path.
func readings(path string) (all []string) {
	for range 6 {
		text := strings.ToLower(strings.ReplaceAll(path, `\`, "/"))
		text, _, _ = strings.Cut(text, "#")
		text, _, _ = strings.Cut(text, "?")
		for _, resolve := range []bool{false, true} {
			var kept []string
			for segment := range strings.SplitSeq(text, "/") {
				segment, _, _ = strings.Cut(segment, ";")
				segment = strings.Trim(segment, " \t")
				if resolve && segment == ".." {
					kept = kept[:max(0, len(kept)-1)]
				}
				if segment = strings.TrimRight(segment, "."); segment != "" {
					kept = append(kept, segment)
				}
			}
			all = append(all, "/"+strings.Join(kept, "/")+"/")
		}
		next := string(decodeOnce([]byte(path)))
		if next == path {
			break
		}
		path = next
	}
	return all
}

// forbiddenReading is what no reading of a path that is sent may be.
var forbiddenReading = regexp.MustCompile(`^/(?:(?:.*/)?(?:v[0-9][a-z0-9]*|openai|anthropic|api|beta|inference|backend-api|codex)/)?` +
	`(?:organizations?|user_profiles|tunnels|admin|billing|dashboard|credits|oauth2?|keys|auth/keys|auth_tokens|user/balance|chatkit/sessions|realtime/(?:transcription_)?sessions)/` +
	`|/(?:api[-_]?keys|admin_api_keys|client_secrets?)/`)

// FuzzRefused: whatever way a path is spelled, one that a server could read as refused is
// not sent, with any method.
func FuzzRefused(f *testing.F) {
	for _, paths := range refused {
		for _, path := range paths {
			f.Add(path)
		}
	}
	for _, path := range []string{
		"/v1/%6frganizations;x/.", "/v1//x;/../keys", "/v1/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/api_keys", "/openai/v1%252fprojects", "/v1/messages/..;/oauth", "/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/ApikeYs",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		for _, name := range []string{"anthropic", "openai", "gemini", "azure", "bedrock", "cohere", "ollama", "voyage", "perplexity", "gateway"} {
			target, err := registry.Route([]byte("/"+name+path), nil)
			if err != nil {
				continue
			}
			for _, method := range []string{"GET", "POST", "DELETE", "BREW"} {
				if _, err := provider.Inspect(&provider.Request{Provider: target.Provider, Method: []byte(method), Rest: target.Rest}); err != nil {
					continue
				}
				for _, reading := range readings(path) {
					if forbiddenReading.MatchString(reading) {
						t.Errorf("%s %q at %s is sent, and could be read as %s", method, path, name, reading)
					}
				}
			}
		}
	})
}

// TestPathsWithoutACredential: what is neither a row's nor below the mount of an API is
// not sent.
func TestPathsWithoutACredential(t *testing.T) {
	f := func(name, method, path, want string) {
		t.Helper()
		var got string
		c, err := provider.Inspect(&provider.Request{Provider: registry.Provider(name), Method: []byte(method), Rest: []byte(path)})
		var refusal *provider.Refusal
		switch {
		case err == nil:
			got = c.Endpoint.Action.String()
		case errors.As(err, &refusal) && refusal.Endpoint != nil:
			got = fmt.Sprintf("%s %d %s", refusal.Endpoint.Action, refusal.Status, refusal.Code)
		default:
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s %s at %s: got %s, want %s", method, path, name, got, want)
		}
	}
	const (
		unknown = "unknown 404 unknown_path"
		local   = "local 404 answered_locally"
	)
	// Telemetry and settings of Claude Code.
	for _, path := range []string{
		"/api/event_logging/v2/batch", "/api/event_logging", "/API/Event%5fLogging//batch/", "/api/claude_code/settings", "/api/claude_code/policy_limits",
		"/api/claude_code/organizations/metrics_enabled", "/api/claude_code_penguin_mode", "/api/claude_cli/bootstrap", "/api/eval/sdk-abc", "/api/directory/server-urls", "/api/hello",
	} {
		f("anthropic", "GET", path, local)
		f("anthropic", "POST", path, local)
		f("openai", "POST", path, unknown)
		f("anthropic", "BREW", path, local)
	}
	f("anthropic", "GET", "/api/web/domain_info", "free")
	f("anthropic", "POST", "/api/web/domain_info", unknown)
	// Everything else of the host.
	for _, path := range []string{
		"/", "", "/login", "/settings", "/api/frame/frames", "/backend-api/conversations", "/.well-known/jwks.json", "/api/x/v1/messages", "/x/v1/y/z", "/v1:x", "/foo/messages", "/messages", "/api/files", "/api/conversations/c1",
		"/v1/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p", // deeper than any API
	} {
		for _, method := range []string{"GET", "POST", "PUT", "BREW"} {
			f("anthropic", method, path, unknown)
		}
	}
	for name, paths := range map[string][]string{
		"openai":     {"/backend-api/me", "/backend-api/conversations", "/auth/login", "/a/b/v1/messages", "/inventory"},
		"gemini":     {"/files/x", "/models/m:generateContent", "/upload/files", "/$discovery/rest", "/tunedModels"},
		"azure":      {"/api/x", "/subscriptions/s/resourceGroups/r"},
		"bedrock":    {"/custom-models", "/provisioned-model-throughput", "/logging/modelinvocations"},
		"cohere":     {"/chatx", "/dashboard2/x"},
		"ollama":     {"/", "/metrics"},
		"groq":       {"/settings", "/a/openai/x"},
		"local-vllm": {"/metrics", "/shutdown", "/key/generate", "/user/new", "/api/conversations"},
	} {
		for _, path := range paths {
			f(name, "DELETE", path, unknown)
		}
	}
	// A provider's API, also what it has invented today.
	for name, paths := range map[string][]string{
		"anthropic":   {"/v1/brand/new", "/v2/x", "/v1beta/x"},
		"openai":      {"/v1/brand/new", "/backend-api/codex/brand/new", "/beta/brand/new"},
		"gemini":      {"/v1beta/brand/new", "/upload/v1beta/x", "/v1internal/x"},
		"vertex":      {"/v1beta1/projects/p/locations/l/brandNew"},
		"azure":       {"/openai/brand/new", "/models/brand", "/anthropic/v1/brand", "/providers/cohere/v3/brand", "/api/projects/p/brand"},
		"bedrock":     {"/model/m/brand-new", "/openai/v1/brand", "/anthropic/v1/brand", "/v1/brand", "/knowledgebases/k/retrieve"},
		"cohere":      {"/v3/brand", "/compatibility/v1/brand"},
		"ollama":      {"/api/brand", "/v1/brand"},
		"voyage":      {"/v1/brand"},
		"groq":        {"/openai/v1/brand", "/api/paas/brand"},
		"openrouter":  {"/api/v1/brand"},
		"perplexity":  {"/brand/new"},
		"deepseek":    {"/brand"},
		"huggingface": {"/novita/brand", "/hf-inference/models/m"},
		"versioned":   {"/brand/new"}, // its base URL ends in /v1
		"gateway":     {"/v1/brand"},
	} {
		for _, path := range paths {
			f(name, "POST", path, "inject")
			f(name, "GET", path, "free")
			f(name, "DELETE", path, "free")
		}
	}
	f("anthropic", "GET", "/v1/api/claude_code/x", "free") // telemetry begins at the host
	f("local-vllm", "POST", "/tokenize", "free")
	f("local-vllm", "POST", "/chat/completions", "inject")
	f("local-vllm", "GET", "/models", "free")
	f("local-vllm", "GET", "/files/file-1", "free") // known by its POST
	f("bedrock", "GET", "/inference-profiles", "free")
	f("ollama", "GET", "/api/tags", "free")
}

func TestOperatorsRules(t *testing.T) {
	type rules = []provider.PathRule
	// ask gives what becomes of each request: its action, what is counted, and whether
	// it may be sent twice; or the code of a refusal.
	ask := func(t *testing.T, name string, list rules, request string) string {
		t.Helper()
		family := registry.Provider(name).Family
		r, err := provider.NewRegistry([]provider.Options{{Name: name, Family: family, BaseURL: "https://h.example/mount", Paths: list}})
		if err != nil {
			t.Fatal(err)
		}
		method, path, _ := strings.Cut(request, " ")
		target, err := r.Route([]byte("/"+name+path), nil)
		at, _ := provider.ParseAuthority("h.example", 443)
		if _, proxied := r.RouteAt(at, []byte("/mount"+path)); (err == nil) != (proxied == nil) {
			t.Errorf("%s: %v in one mode, and %v in the other", request, err, proxied)
		}
		var refusal *provider.Refusal
		if err == nil {
			var c provider.Call
			c, err = provider.Inspect(&provider.Request{Provider: target.Provider, Method: []byte(method), Rest: target.Rest})
			if err == nil {
				text := c.Endpoint.Action.String()
				if c.Endpoint.Billable() {
					text += " counted"
				}
				if c.Endpoint.Creates {
					text += " once"
				}
				if c.Session.ID != "" {
					text += " session"
				}
				return text
			}
		}
		if !errors.As(err, &refusal) {
			t.Fatalf("%s: %v", request, err)
		}
		return refusal.Code
	}
	for _, test := range []struct {
		name  string
		rules rules
		want  map[string]string
	}{
		{"anthropic", rules{{Path: "/api/hello", Action: "free"}, {Path: "/api/claude_code/**", Methods: []string{"GET"}, Action: "inject"}}, map[string]string{
			"GET /api/hello": "free", "POST /api/hello": "free", "GET /api/hello/x": "answered_locally", "GET /api/claude_code/settings": "inject",
			"GET /API/%63laude_code;x/Settings/": "inject", "POST /api/claude_code/settings": "answered_locally", "GET /api/nothing": "unknown_path",
		}},
		{"anthropic", rules{{Path: "/v1/skills/**", Action: "refuse"}, {Path: "/v1/complete", Action: "local"}, {Path: "/v1/*/x", Methods: []string{"POST"}, Action: "refuse"}}, map[string]string{
			"POST /v1/skills": "forbidden_path", "GET /v1/skills/s": "forbidden_path", "POST /v1//%73kills": "forbidden_path", "POST /v1/complete": "answered_locally",
			"POST /v1/y/x": "forbidden_path", "GET /v1/y/x": "free", "POST /v1/messages": "inject counted session",
		}},
		// The first counts.
		{"anthropic", rules{{Path: "/v1/files/a*", Action: "local"}, {Path: "/v1/files/**", Action: "refuse"}}, map[string]string{
			"GET /v1/files/abc": "answered_locally", "GET /v1/files/bcd": "forbidden_path",
		}},
		// What is sent is counted as the manifest says, unless it is free.
		{"anthropic", rules{{Path: "/v1/messages", Action: "inject"}, {Path: "/v1/complete", Action: "free"}, {Path: "/v1/messages/count_tokens", Action: "bound"}, {Path: "/other", Action: "inject"}, {Path: "/kept", Action: "bound"}}, map[string]string{
			"POST /v1/messages": "inject counted session", "POST /v1/complete": "free session", "POST /v1/messages/count_tokens": "bound once session",
			"POST /other": "inject counted once", "GET /other": "inject", "POST /kept": "bound counted once", "GET /kept": "bound",
		}},
		// No pattern opens what is refused.
		{"openrouter", rules{{Path: "/**", Action: "free"}, {Path: "/api/v1/**", Action: "inject"}}, map[string]string{
			"GET /api/v1/credits": "forbidden_path", "POST /api/v1/keys": "forbidden_path", "GET /settings": "free", "POST /api/v1/x/client_secrets": "forbidden_path",
			"POST /api/v1/chat/completions": "free session",
		}},
		{"ollama", rules{{Path: "/api/pull", Methods: []string{"POST"}, Action: "free"}}, map[string]string{
			"POST /api/pull": "free", "GET /api/pull": "forbidden_path", "POST /api/push": "forbidden_path", "POST /api/pull/x": "forbidden_path",
		}},
		{"anthropic", rules{{Path: "/v1/**", Action: "free"}, {Path: "/v1/organizations/me", Methods: []string{"GET"}, Action: "inject"}}, map[string]string{
			"GET /v1/organizations/me": "free", "DELETE /v1/organizations/me": "forbidden_path", "GET /v1/organizations/users": "forbidden_path", "POST /v1/oauth/token": "forbidden_path",
		}},
		// Its own path does, with its methods and nothing else.
		{"openrouter", rules{{Path: "/api/v1/credits", Methods: []string{"GET"}, Action: "inject"}}, map[string]string{
			"GET /api/v1/credits": "free", "GET /api/v1/Credits/": "free", "POST /api/v1/credits": "forbidden_path", "HEAD /api/v1/credits": "forbidden_path",
			"GET /api/v1/credits/x": "forbidden_path", "GET /api/v1/keys": "forbidden_path", "GET /credits": "forbidden_path", "POST /api/v1/models/x": "inject counted once",
		}},
	} {
		for _, request := range slices.Sorted(maps.Keys(test.want)) {
			if got := ask(t, test.name, test.rules, request); got != test.want[request] {
				t.Errorf("%v: %s: got %s, want %s", test.rules, request, got, test.want[request])
			}
		}
	}
}

// A rule changes what is done with a path, and nothing else that is known of it.
func TestOperatorsRulesKeepWhatIsKnown(t *testing.T) {
	r, err := provider.NewRegistry([]provider.Options{{
		Name: "openrouter", Family: provider.OpenAI, BaseURL: "https://openrouter.ai", Paths: []provider.PathRule{{Path: "/api/v1/**", Action: "free"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string) provider.Call {
		t.Helper()
		c, err := provider.Inspect(&provider.Request{Provider: r.Provider("openrouter"), Method: []byte(method), Rest: []byte(path), Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		if c.Endpoint.Billable() {
			t.Errorf("%s %s is counted", method, path)
		}
		return c
	}
	if c := call("POST", "/api/v1/messages", `{"model":"m","stream":true}`); c.Shape != provider.Anthropic || c.Model != "m" || !c.Stream || c.Session.ID == "" || !c.Patch.Empty() {
		t.Errorf("got %+v", c)
	}
	if c := call("POST", "/api/v1/chat/completions", `{"model":"m","stream":true}`); c.Shape != provider.OpenAI || c.Model != "m" || !c.Stream || !c.Patch.Empty() {
		t.Errorf("got %+v", c)
	}
	if c := call("GET", "/api/v1/files", ""); !c.Endpoint.Lists {
		t.Error("what all have made is not known for a list any more")
	}
	if c := call("GET", "/api/v1/responses/resp_1", ""); c.Model != "" || c.Batch != "" || !slices.Equal(c.Pins.IDs, []string{"resp_1"}) {
		t.Errorf("got %+v", c)
	}
}

// TestOperatorsRulesThatAreRefused: nothing in a config has a credential sent to where
// keys and secrets are made.
func TestOperatorsRulesThatAreRefused(t *testing.T) {
	with := func(name string, rule provider.PathRule) (*provider.Registry, error) {
		return provider.NewRegistry([]provider.Options{{Name: name, Family: registry.Provider(name).Family, BaseURL: "https://h", Paths: []provider.PathRule{{Path: "/x", Action: "local"}, rule}}})
	}
	f := func(name string, rule provider.PathRule, key, want string) {
		t.Helper()
		_, err := with(name, rule)
		var fault *provider.PathError
		if !errors.As(err, &fault) || fault.Provider != name || fault.Index != 1 || fault.Key != key || fault.Allowed == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s %+v: got %v, want a fault of %s about %q", name, rule, err, key, want)
		}
	}
	for name, paths := range refused {
		for _, path := range paths {
			for _, action := range []string{"inject", "free", "bound"} {
				f(name, provider.PathRule{Path: path, Action: action}, "path", "would have a credential sent")
				f(name, provider.PathRule{Path: path + "/**", Methods: []string{"GET"}, Action: action}, "path", "would have a credential sent")
			}
			if _, err := with(name, provider.PathRule{Path: path, Action: "local"}); err != nil {
				t.Errorf("%s %s: %v", name, path, err)
			}
		}
	}
	for name, path := range map[string]string{
		"openrouter": "/api/v1/keys", "openai": "/v1/realtime/client_secrets", "anthropic": "/v1/oauth/token", "gemini": "/v1beta/auth_tokens", "cohere": "/v1/organizations/x/api_keys",
	} {
		f(name, provider.PathRule{Path: path, Methods: []string{"GET"}, Action: "inject"}, "path", "without authpool")
	}
	if r, err := with("openai", provider.PathRule{Path: "/v1/files/keys/oauth/**", Action: "inject"}); err != nil || len(r.PathNotes()) > 0 {
		t.Errorf("ids that are words: %v", err)
	}
	f("anthropic", provider.PathRule{Path: "/v1/organizations/invites", Methods: []string{"GET", "POST"}, Action: "inject"}, "methods", "changed")
	f("openai", provider.PathRule{Path: "v1/x", Action: "free"}, "path", "does not begin at the host")
	f("openai", provider.PathRule{Path: "**/x", Action: "free"}, "path", "does not begin at the host")
	f("openai", provider.PathRule{Path: "/{version}/x", Action: "free"}, "path", "does not begin at the host")
	f("openai", provider.PathRule{Path: "/a//b", Action: "free"}, "path", "empty segment")
	f("openai", provider.PathRule{Path: "/x", Methods: []string{"BREW"}, Action: "free"}, "methods", "BREW")
	f("openai", provider.PathRule{Path: "/x", Action: "ignore"}, "action", "ignore")

	for _, path := range []string{"/v1/organizations/usage_report/messages", "/v1/organizations"} {
		r, err := with("anthropic", provider.PathRule{Path: path, Methods: []string{"GET"}, Action: "inject"})
		if err != nil {
			t.Fatal(err)
		}
		notes := r.PathNotes()
		if len(notes) != 1 || notes[0].Index != 1 || !strings.Contains(notes[0].Error(), "administration") {
			t.Errorf("%s is opened, and what is said is %v", path, notes)
		}
	}
	if notes := registry.PathNotes(); len(notes) > 0 {
		t.Errorf("nothing is opened, and what is said is %v", notes)
	}
}
