package simulator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Providers whose endpoints are simulated.
const (
	Anthropic = "anthropic"
	OpenAI    = "openai"
	Gemini    = "gemini"
	Bedrock   = "bedrock"
)

// simulated are the providers whose endpoints are.
var simulated = []string{Anthropic, OpenAI, Gemini, Bedrock}

// Key is a credential that the simulator accepts, with the limits it has.
type Key struct {
	// Key is the secret as the client sends it, without "Bearer".
	Key string `yaml:"key"`
	// Provider is [Anthropic], [OpenAI], [Gemini] or [Bedrock]; the key is unknown at the others' endpoints. A key of any
	// other provider is accepted at every path and in every header, and is served nothing but its faults.
	Provider string `yaml:"provider"`
	// RPM, ITPM and OTPM are requests, input tokens and output tokens a minute; zero is no limit. Each is a
	// bucket that holds one minute's worth and starts full. Input that was read from the cache is free at
	// Anthropic. OpenAI has one token limit in its headers, which is ITPM if set.
	RPM  int `yaml:"rpm"`
	ITPM int `yaml:"itpm"`
	OTPM int `yaml:"otpm"`
	// Windows are the usage windows of a subscription plan, told in the headers of every answer; at most one of each
	// length. Their end is told as Anthropic's unified and Codex's limits.
	Windows []UsageWindow `yaml:"windows"`
	// Organisation is whom the limits belong to: keys of one provider that name the same share them, and must state
	// the same. It is told in the headers of every answer. Empty: one of the key's own.
	Organisation string `yaml:"organisation"`
	// Faults happen to this key's requests, counted from the start.
	Faults []Fault `yaml:"faults"`
}

// ReadKeys decodes a keys file: a YAML list of keys. Unknown fields, unknown kinds, repeated keys and
// negative numbers are errors; all of them are reported at once.
func ReadKeys(r io.Reader) ([]Key, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys file: %w", err)
	}
	var keys []Key
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&keys); err != nil {
		return nil, fmt.Errorf("cannot decode the keys file: %w", err)
	}
	var faults []error
	for i := range keys {
		for j := range keys[i].Faults {
			if err := keys[i].Faults[j].load(); err != nil {
				faults = append(faults, fmt.Errorf("keys[%d]: faults[%d]: %w", i, j, err))
			}
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	return keys, nil
}

// sharesLimits tells whether both keys have the same limits.
func (k Key) sharesLimits(o Key) bool {
	return k.RPM == o.RPM && k.ITPM == o.ITPM && k.OTPM == o.OTPM && slices.Equal(k.Windows, o.Windows)
}

var providerName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

func checkKeys(keys []Key) error {
	var faults []error
	seen := make(map[string]bool, len(keys))
	for i, k := range keys {
		say := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("keys[%d]: %w", i, fmt.Errorf(format, args...)))
		}
		if k.Key == "" {
			say("key: empty, write the credential that clients send")
		}
		if seen[k.Provider+" "+k.Key] {
			say("key: listed twice for %s", k.Provider)
		}
		seen[k.Provider+" "+k.Key] = true
		if !providerName.MatchString(k.Provider) {
			say("provider: %q, want %s or another name in lower case", k.Provider, strings.Join(simulated, ", "))
		}
		if k.RPM < 0 || k.ITPM < 0 || k.OTPM < 0 {
			say("rpm, itpm, otpm: negative, want 0 (no limit) or more")
		}
		for j, w := range k.Windows {
			if err := w.check(); err != nil {
				say("windows[%d]: %w", j, err)
			}
			if slices.ContainsFunc(k.Windows[:j], func(o UsageWindow) bool { return o.Name == w.Name }) {
				say("windows[%d]: a second %s", j, w.Name)
			}
		}
		if j := slices.IndexFunc(keys[:i], func(o Key) bool {
			return k.Organisation != "" && o.Organisation == k.Organisation && o.Provider == k.Provider
		}); j >= 0 && !k.sharesLimits(keys[j]) {
			say("organisation: its limits differ from those of keys[%d], which shares them", j)
		}
		for j, f := range k.Faults {
			if err := f.check(); err != nil {
				say("faults[%d]: %w", j, err)
			}
		}
	}
	return errors.Join(faults...)
}
