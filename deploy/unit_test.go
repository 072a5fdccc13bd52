package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const unitFile = "authpool.service"

// unit is a systemd unit: section → key → values.
func unit(t *testing.T) map[string]map[string][]string {
	t.Helper()
	sections := map[string]map[string][]string{}
	section := ""
	for number, line := range strings.Split(read(t, unitFile), "\n") {
		switch name, isSection := strings.CutPrefix(line, "["); {
		case line == "" || line[0] == '#':
		case isSection:
			section = strings.TrimSuffix(name, "]")
			sections[section] = map[string][]string{}
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" || key != strings.TrimSpace(key) {
				t.Fatalf("%s:%d: %q is no setting", unitFile, number+1, line)
			}
			sections[section][key] = append(sections[section][key], value)
		}
	}
	return sections
}

func TestUnitStartsReloadsAndStops(t *testing.T) {
	service := unit(t)["Service"]
	for key, want := range map[string]string{
		"ExecStart":                "/usr/local/bin/authpool serve -c /etc/authpool/authpool.yaml",
		"ExecReload":               "/bin/kill -HUP $MAINPID",
		"RestartPreventExitStatus": "2",
		"TimeoutStopSec":           "45s", // more than shutdown.grace
		"DynamicUser":              "yes",
		"StateDirectory":           "authpool",
		"StateDirectoryMode":       "0700",
		"Environment":              "AUTHPOOL_STATE_DIR=/var/lib/authpool",
		"LimitCORE":                "0",
		"NoNewPrivileges":          "yes",
		"ProtectSystem":            "strict",
		"CapabilityBoundingSet":    "",
		"MemoryDenyWriteExecute":   "yes",
	} {
		if got := service[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
	if got := unit(t)["Install"]["WantedBy"]; !slices.Equal(got, []string{"multi-user.target"}) {
		t.Errorf("WantedBy=%q", got)
	}
}

// TestSystemdAcceptsTheUnit asks systemd itself. Machines without it have the
// test above.
func TestSystemdAcceptsTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze on PATH: the unit was only parsed")
		return
	}
	// A binary that exists, since verify looks for it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), unitFile)
	text := strings.ReplaceAll(read(t, unitFile), "/usr/local/bin/authpool", self)
	if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// 0 is a unit that can do nothing, 100 one that can do all.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=20", copied).CombinedOutput(); err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}
