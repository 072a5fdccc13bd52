package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// setup is a command with all that it needs to go through authpool.
type setup struct {
	argv    []string
	environ []string
}

// newSetup prepares a command for a way.
func newSetup(p *program, w way, argv []string) (*setup, error) {
	s := &setup{argv: slices.Clone(argv)}
	vars := append(w.variables(p), sessionHeaders(p, w.session)...)
	if prepare := needs[commandName(argv[0])]; prepare != nil {
		more, err := prepare(s, p, w)
		if err != nil {
			return nil, fmt.Errorf("cannot prepare %s: %w", argv[0], err)
		}
		vars = append(vars, more...)
	}
	s.environ = environment(p.environ, vars)
	return s, nil
}

// environment is environ with vars; of two of one name the later one rules.
func environment(environ []string, vars []variable) []string {
	final := make(map[string]variable, len(vars))
	for _, v := range vars {
		final[v.name] = v
	}
	env := slices.DeleteFunc(slices.Clone(environ), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		_, ours := final[name]
		return ours
	})
	for _, v := range vars {
		if rules, ok := final[v.name]; ok && !rules.unset {
			env = append(env, v.name+"="+rules.value)
		}
		delete(final, v.name)
	}
	return env
}

// sessionHeader names the session of a request.
const sessionHeader = "X-Authpool-Session"

// sessionHeaders have clients name a session: Claude Code and Anthropic's SDKs, OpenAI's
// SDKs, Gemini CLI. Headers that the environment has them send stay, but for one of ours.
func sessionHeaders(p *program, session string) []variable {
	var vars []variable
	for _, list := range []struct{ name, between string }{
		{"ANTHROPIC_CUSTOM_HEADERS", "\n"}, {"OPENAI_CUSTOM_HEADERS", "\n"}, {"GEMINI_CLI_CUSTOM_HEADERS", ","},
	} {
		headers := []string{sessionHeader + ": " + session}
		for header := range strings.SplitSeq(p.getenv(list.name), list.between) {
			if name, _, _ := strings.Cut(header, ":"); strings.TrimSpace(name) != "" && !strings.EqualFold(strings.TrimSpace(name), sessionHeader) {
				headers = append(headers, strings.TrimSpace(header))
			}
		}
		vars = append(vars, variable{name: list.name, value: strings.Join(headers, list.between)})
	}
	return vars
}

// needs are what clients need beside variables that all get, by their commands. None may
// put the token on a command line, which every user of the machine can read.
var needs = map[string]func(s *setup, p *program, w way) ([]variable, error){
	"claude":   claudeNeeds,
	"codex":    codexNeeds,
	"gemini":   geminiNeeds,
	"opencode": opencodeNeeds,
}

// claudeNeeds: Claude Code asks whether to use a key of the environment, and warns of two
// credentials; a token it just uses. One that is set up for a cloud heeds no base URL of
// ours, and finds logins that are in no variable: it would go past authpool unnoticed.
func claudeNeeds(_ *setup, p *program, w way) ([]variable, error) {
	if w.mode == modeBaseURL {
		if names := cloudsAround(p, w.base); len(names) > 0 {
			return nil, fmt.Errorf("with %s it asks a cloud, past authpool: unset that, or use --mode proxy", strings.Join(names, ", "))
		}
	}
	return []variable{{name: "ANTHROPIC_API_KEY", unset: true}}, nil
}

// claudeCloud is a variable that has Claude Code ask a cloud instead of Anthropic, and the
// one that names a base URL of that cloud.
type claudeCloud struct{ name, base string }

// claudeClouds are all that Claude Code 2.1.330 knows.
var claudeClouds = []claudeCloud{
	{"CLAUDE_CODE_USE_BEDROCK", "ANTHROPIC_BEDROCK_BASE_URL"},
	{"CLAUDE_CODE_USE_MANTLE", "ANTHROPIC_BEDROCK_MANTLE_BASE_URL"},
	{"CLAUDE_CODE_USE_VERTEX", "ANTHROPIC_VERTEX_BASE_URL"},
	{"CLAUDE_CODE_USE_FOUNDRY", "ANTHROPIC_FOUNDRY_BASE_URL"},
	{"CLAUDE_CODE_USE_ANTHROPIC_AWS", "ANTHROPIC_AWS_BASE_URL"},
	{"CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD", "ANTHROPIC_GOOGLE_CLOUD_BASE_URL"},
}

// cloudsAround are those that are on in the environment, and lead elsewhere than to the
// authpool at base.
func cloudsAround(p *program, base string) []string {
	var names []string
	for _, c := range claudeClouds {
		if isCloud(c.name, p.getenv(c.name)) && !leadsTo(base, p.getenv(c.base)) {
			names = append(names, c.name)
		}
	}
	return names
}

// isCloud tells whether a variable is one of them, with what Claude Code takes for a yes.
func isCloud(name, value string) bool {
	return slices.ContainsFunc(claudeClouds, func(c claudeCloud) bool { return c.name == name }) &&
		slices.Contains([]string{"1", "true", "yes", "on"}, strings.ToLower(strings.TrimSpace(value)))
}

// leadsTo tells whether a base URL is authpool's at base.
func leadsTo(base, value string) bool {
	return base != "" && (value == base || strings.HasPrefix(value, base+"/"))
}

// codexSession carries the session to Codex, which takes headers' values from variables.
const codexSession = "AUTHPOOL_RUN_SESSION"

// codexNeeds: Codex ignores OPENAI_BASE_URL, and uses a login that it has rather than a key.
// A provider of its own on the command line changes neither its config nor its login.
func codexNeeds(s *setup, _ *program, w way) ([]variable, error) {
	base := w.base + "/v1"
	if w.mode == modeProxy {
		base = "https://api.openai.com/v1"
	}
	var flags []string
	for _, setting := range []string{
		`model_provider="authpool"`,
		`model_providers.authpool.name="authpool"`,
		`model_providers.authpool.base_url="` + base + `"`,
		`model_providers.authpool.env_key="OPENAI_API_KEY"`,
		`model_providers.authpool.wire_api="responses"`,
		`model_providers.authpool.env_http_headers={"` + sessionHeader + `"="` + codexSession + `"}`,
	} {
		flags = append(flags, "-c", setting)
	}
	s.argv = slices.Insert(s.argv, 1, flags...)
	return []variable{{name: codexSession, value: w.session}}, nil
}

// geminiByKey is what the settings of Gemini CLI say of one that goes by a key.
const geminiByKey = "gemini-api-key"

// geminiNeeds: Gemini CLI goes by a key only when its settings say so, or when they and
// the environment say nothing else, as a base URL does. No settings can be given to it but
// root's. Where it cannot ask whether a folder is trusted, it refuses to start.
func geminiNeeds(_ *setup, p *program, w way) ([]variable, error) {
	home := p.getenv("GEMINI_CLI_HOME")
	if home == "" {
		home = p.getenv("HOME")
	}
	path := filepath.Join(home, ".gemini", "settings.json")
	switch by := geminiLogin(path); {
	case by == geminiByKey:
	case by != "":
		return nil, fmt.Errorf("%s says that it logs in by %q, past authpool: choose \"Use Gemini API Key\" at its /auth", path, by)
	case w.mode == modeBaseURL:
		return nil, fmt.Errorf("it takes a base URL only when %s says {\"security\": {\"auth\": {\"selectedType\": %q}}}: use --mode proxy", path, geminiByKey)
	}
	var vars []variable
	if f, ok := p.In.(*os.File); (!ok || !isTerminal(f)) && p.getenv("GEMINI_CLI_TRUST_WORKSPACE") == "" {
		vars = append(vars, variable{name: "GEMINI_CLI_TRUST_WORKSPACE", value: "true"})
	}
	return vars, nil
}

// geminiLogin is what a user has chosen to log in by; empty: nothing yet.
func geminiLogin(path string) string {
	var settings struct {
		Security struct {
			Auth struct {
				SelectedType string `json:"selectedType"`
			} `json:"auth"`
		} `json:"security"`
	}
	text, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(text, &settings) != nil {
		return "" // it has none, or with comments; it is Gemini CLI that reads them
	}
	return settings.Security.Auth.SelectedType
}

// opencodeConfig is a config that rules over the files of opencode.
const opencodeConfig = "OPENCODE_CONFIG_CONTENT"

// opencodeNeeds: opencode takes base URLs and headers from its config alone.
func opencodeNeeds(_ *setup, p *program, w way) ([]variable, error) {
	providers := map[string]any{}
	for _, o := range []struct{ name, key, path string }{
		{"anthropic", "ANTHROPIC_API_KEY", "/v1"}, {"openai", "OPENAI_API_KEY", "/v1"}, {"google", "GEMINI_API_KEY", "/v1beta"},
	} {
		options := map[string]any{"apiKey": "{env:" + o.key + "}", "headers": map[string]any{sessionHeader: w.session}}
		if w.mode == modeBaseURL {
			options["baseURL"] = w.base + o.path
		}
		providers[o.name] = map[string]any{"options": options}
	}
	content, err := merged([]byte(p.getenv(opencodeConfig)), map[string]any{"provider": providers})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opencodeConfig, err)
	}
	return []variable{{name: opencodeConfig, value: string(content)}}, nil
}

// merged lays values over a JSON object; an empty text is an empty object.
func merged(text []byte, over map[string]any) ([]byte, error) {
	object := map[string]any{}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &object); err != nil {
			return nil, fmt.Errorf("cannot add to it: %w", err)
		}
	}
	lay(object, over)
	return json.Marshal(object)
}

func lay(object, over map[string]any) {
	for name, value := range over {
		inner, isObject := value.(map[string]any)
		there, wasObject := object[name].(map[string]any)
		if isObject && wasObject {
			lay(there, inner)
			continue
		}
		object[name] = value
	}
}
