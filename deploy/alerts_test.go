package deploy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

// TestAlertsAskForMetricsThatExist looks the names up in the program's source.
func TestAlertsAskForMetricsThatExist(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      struct{ Severity string }
				Annotations struct{ Summary, Description string }
			}
		}
	}
	if err := yaml.UnmarshalWithOptions([]byte(read(t, "alerts.yaml")), &rules, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	known := metricNames(t)
	metric := regexp.MustCompile(`\bauthpool_[a-z_]+`)
	seen := map[string]bool{}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			names := metric.FindAllString(rule.Expr, -1)
			for _, name := range names {
				if !known[name] {
					t.Errorf("%s asks for %s, which nothing exports", rule.Alert, name)
				}
			}
			if len(names) == 0 || seen[rule.Alert] || !strings.HasPrefix(rule.Alert, "Authpool") || rule.Annotations.Summary == "" {
				t.Errorf("%q is no rule, or there twice: %+v", rule.Alert, rule)
			}
			seen[rule.Alert] = true
			if s := rule.Labels.Severity; s != "warning" && s != "critical" {
				t.Errorf("%s has severity %q", rule.Alert, s)
			}
			if _, err := time.ParseDuration(rule.For); rule.For != "" && err != nil {
				t.Errorf("%s: %v", rule.Alert, err)
			}
			for _, pair := range []string{"()", "[]", "{}"} {
				if strings.Count(rule.Expr, pair[:1]) != strings.Count(rule.Expr, pair[1:]) {
					t.Errorf("%s: %s do not pair up in %s", rule.Alert, pair, rule.Expr)
				}
			}
		}
	}
	if len(seen) == 0 {
		t.Error("there are no rules")
	}
}

// metricNames are the names that stand as strings in the program.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	literal := regexp.MustCompile(`"(authpool_[a-z_]+)"`)
	names := map[string]bool{}
	for _, folder := range []string{"../proxy", "../pool", "../ratelimit", "../cmd"} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range literal.FindAllStringSubmatch(string(text), -1) {
				names[match[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}
