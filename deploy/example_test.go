package deploy_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/credential"
)

const exampleFile = "authpool.example.yaml"

func TestExampleSaysTheDefaults(t *testing.T) {
	got := parseConfig(t, exampleFile, read(t, exampleFile))
	want := config.Default()
	want.Providers, want.Subscriptions = got.Providers, got.Subscriptions
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("the example differs from the defaults:\n%s", diff)
	}
	for _, s := range got.Subscriptions {
		if _, err := credential.ParseRef(string(s.Credential.Value)); err != nil {
			t.Errorf("%s: %v", s.ID, err)
		}
	}
}

// switchedOff finds settings that only miss the removal of their #; prose has
// one space behind it.
var switchedOff = regexp.MustCompile(`(?m)^#((?:  )*[a-z_]+: )`)

func TestExampleHoldsWithEverySettingSwitchedOn(t *testing.T) {
	c := parseConfig(t, exampleFile, switchedOff.ReplaceAllString(read(t, exampleFile), "$1"))
	switch {
	case !c.TLS.Enabled(), c.Admin.Token == "", c.Admin.Viewer == "", c.Redis.Topology() != config.RedisSingle, c.Redis.Password == "",
		c.StateDir == "", c.Prices == "", len(c.Notifications) == 0, len(c.Subscriptions[0].Budgets) == 0:
		t.Errorf("a setting did not come on: %+v", c)
	}
}

// TestExampleNamesEveryKey reads the keys off the schema, so that a new one
// cannot be forgotten here.
func TestExampleNamesEveryKey(t *testing.T) {
	type object struct{ Properties map[string]any }
	var doc struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal(config.Schema(), &doc); err != nil {
		t.Fatal(err)
	}
	text := switchedOff.ReplaceAllString(read(t, exampleFile), "$1")
	text = regexp.MustCompile(`(?m)(?:^|\s)#.*$`).ReplaceAllString(text, "")
	count := 0
	check := func(o object) {
		for key := range o.Properties {
			count++
			if !regexp.MustCompile(`\b` + regexp.QuoteMeta(key) + `:\s`).MatchString(text) {
				t.Errorf("%s is not in %s", key, exampleFile)
			}
		}
	}
	check(doc.object)
	for _, o := range doc.Defs {
		check(o)
	}
	if count < 70 {
		t.Errorf("only %d keys were found in the schema", count)
	}
}

var snippet = regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```\n")

// TestReadmeSnippetsAreConfigs checks every YAML block that people will copy.
func TestReadmeSnippetsAreConfigs(t *testing.T) {
	for _, file := range []string{"../README.md", "README.md"} {
		for _, block := range snippet.FindAllStringSubmatch(read(t, file), -1) {
			parseConfig(t, file, block[1])
		}
	}
}
