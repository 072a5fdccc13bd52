package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// setup is a command with all that it needs to go through authpool.
type setup struct {
	argv    []string
	environ []string
	folder  string // of temporary files; empty: there are none
}

// newSetup prepares a command for a way. The caller removes it.
func newSetup(p *program, w way, argv []string) (*setup, error) {
	s := &setup{argv: slices.Clone(argv)}
	vars := append(w.variables(p), sessionHeaders(p, w.session)...)
	if prepare := needs[commandName(argv[0])]; prepare != nil {
		more, err := prepare(s, p, w)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot prepare %s: %w", argv[0], err), s.remove())
		}
		vars = append(vars, more...)
	}
	s.environ = environment(p.environ, vars)
	return s, nil
}

// remove removes what was made.
func (s *setup) remove() error {
	if s.folder == "" {
		return nil
	}
	return os.RemoveAll(s.folder)
}

// file makes a temporary file and returns its path.
func (s *setup) file(name string, content []byte) (string, error) {
	if s.folder == "" {
		var err error
		if s.folder, err = os.MkdirTemp("", "authpool-run-"); err != nil {
			return "", err
		}
	}
	path := filepath.Join(s.folder, name)
	return path, os.WriteFile(path, content, 0o600)
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
// credentials; a token it just uses.
func claudeNeeds(_ *setup, _ *program, _ way) ([]variable, error) {
	return []variable{{name: "ANTHROPIC_API_KEY", unset: true}}, nil
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

// geminiSettings are the settings that rule over the user's, and the variable that names
// another file of them.
const (
	geminiSettings         = "/etc/gemini-cli/settings.json"
	geminiSettingsVariable = "GEMINI_CLI_SYSTEM_SETTINGS_PATH"
)

// geminiNeeds: Gemini CLI goes by a key only when its settings say so. Where it cannot ask
// whether a folder is trusted, it refuses to start.
func geminiNeeds(s *setup, p *program, _ way) ([]variable, error) {
	path := p.getenv(geminiSettingsVariable)
	if path == "" {
		path = geminiSettings
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	settings, err := merged(text, map[string]any{"security": map[string]any{"auth": map[string]any{"selectedType": "gemini-api-key"}}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	made, err := s.file("gemini.json", settings)
	if err != nil {
		return nil, err
	}
	vars := []variable{{name: geminiSettingsVariable, value: made}}
	if f, ok := p.In.(*os.File); (!ok || !isTerminal(f)) && p.getenv("GEMINI_CLI_TRUST_WORKSPACE") == "" {
		vars = append(vars, variable{name: "GEMINI_CLI_TRUST_WORKSPACE", value: "true"})
	}
	return vars, nil
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
