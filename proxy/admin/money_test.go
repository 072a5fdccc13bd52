package admin_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/proxy/admin"
)

func TestNanoUSD(t *testing.T) {
	f := func(n admin.NanoUSD, want string) {
		t.Helper()
		if got := n.String(); got != want {
			t.Errorf("%d: got %q, want %q", int64(n), got, want)
		}
	}
	f(0, "0")
	f(1, "0.000000001")
	f(1_291_817_850, "1.29181785")
	f(25_000_000_000, "25")
	f(-500_000_000, "-0.5")
	f(math.MaxInt64, "9223372036.854775807")
	f(math.MinInt64, "-9223372036.854775808")
}

func TestNanoUSDSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := admin.NanoUSD(rapid.Int64().Draw(t, "nano"))
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(string(text), "eE+") || text[0] != '"' {
			t.Fatalf("%s is not a plain decimal string", text)
		}
		var got admin.NanoUSD
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Fatalf("%s: got %d, %v, want %d", text, got, err, want)
		}
	})
}

func TestNanoUSDRefuses(t *testing.T) {
	for _, text := range []string{"", "-", ".5", "5.", "1e9", "+1", "1.0000000001", "99999999999", "0x1", "1 "} {
		var n admin.NanoUSD
		if err := n.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %d, want an error", text, int64(n))
		}
	}
}
