package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// envKeys are the variables that name subscriptions when there is no file.
var envKeys = []struct{ variable, provider string }{
	{"ANTHROPIC_API_KEY", "anthropic"},
	{"OPENAI_API_KEY", "openai"},
	{"GEMINI_API_KEY", "gemini"},
}

// FromEnv is the configuration without a file: Default, and one subscription for
// each provider key found in environ (KEY=value, as from os.Environ).
// ANTHROPIC_API_KEY becomes anthropic-1, ANTHROPIC_API_KEY_2 anthropic-2, and so
// on; empty variables are none. The values stay in the environment.
func FromEnv(environ []string) *Config {
	c := Default()
	for _, key := range envKeys {
		numbers := map[int]string{}
		for _, entry := range environ {
			name, value, _ := strings.Cut(entry, "=")
			if n, ok := keyNumber(name, key.variable); ok && value != "" {
				numbers[n] = name
			}
		}
		for n, name := range numbers {
			s := Subscription{ID: key.provider + "-" + strconv.Itoa(n), Provider: key.provider}
			s.setDefaults()
			s.Credential.Value = Ref("env:" + name)
			c.Subscriptions = append(c.Subscriptions, s)
		}
	}
	slices.SortFunc(c.Subscriptions, func(a, b Subscription) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID))
	})
	return c
}

// keyNumber reads the number off a variable's name: 1 for the bare name, N for
// NAME_N from 2 on, written without leading zeros.
func keyNumber(name, variable string) (int, bool) {
	if name == variable {
		return 1, true
	}
	suffix, ok := strings.CutPrefix(name, variable+"_")
	if !ok || len(suffix) > 4 {
		return 0, false
	}
	n, err := strconv.Atoi(suffix)
	return n, err == nil && n >= 2 && strconv.Itoa(n) == suffix
}
