package credential_test

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/credential"
)

// webToken is a JSON Web Token with these claims.
func webToken(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2lnbmF0dXJl"
}

// bedrockKey is a short-term key of Amazon Bedrock with this query.
func bedrockKey(query string) string {
	return "bedrock-api-key-" + base64.StdEncoding.EncodeToString([]byte("bedrock.amazonaws.com/?Action=CallWithBearerToken&"+query+"&Version=1"))
}

func TestValidity(t *testing.T) {
	f := func(secret, from, until string) {
		t.Helper()
		gotFrom, gotUntil, ok := credential.NewSecret(secret).Validity()
		for _, tt := range []struct {
			got  time.Time
			want string
		}{{gotFrom, from}, {gotUntil, until}} {
			got := ""
			if !tt.got.IsZero() {
				got = tt.got.UTC().Format(time.RFC3339)
			}
			if got != tt.want || ok != (until != "") {
				t.Errorf("%q: from %v until %v, %v; want %q, %q", secret, gotFrom, gotUntil, ok, from, until)
			}
		}
	}
	const begin, end = "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"
	f(webToken(`{"iss":"a","iat":1795392000,"exp":1795478400}`), begin, end)
	f(webToken(`{"nbf":1795392000.5,"exp":1795478400.25}`), begin, end)
	f(webToken(`{"iat":1795392000,"nbf":1,"exp":1.7954784e9}`), begin, end)
	f(webToken(`{"exp":1795478400}`), "", end)
	f(bedrockKey("X-Amz-Date=20261123T000000Z&X-Amz-Expires=86400&X-Amz-Signature=00"), begin, end)

	// No end is told, or none that can be one.
	f("", "", "")
	f("sk-ant-api03-abc.def.ghi", "", "")
	f("a.b", "", "")
	f(webToken(`{"iat":1795392000}`), "", "")
	f(webToken(`{"exp":"1795478400"}`), "", "")
	f(webToken(`{"exp":-5}`), "", "")
	f(webToken(`{"exp":1e300}`), "", "")
	f(webToken(`[1795478400]`), "", "")
	f(webToken(`{"exp":17954`), "", "")
	f("ABSKQmVkcm9ja0FQSUtleS1hYmM=", "", "") // a long-term one
	f("bedrock-api-key-%%", "", "")
	f(bedrockKey("X-Amz-Date=20261123T000000Z"), "", "")
	f(bedrockKey("X-Amz-Expires=86400"), "", "")
	f(bedrockKey("X-Amz-Date=20261123T000000Z&X-Amz-Expires=-1"), "", "")
	f(bedrockKey("X-Amz-Date=20261123T000000Z&X-Amz-Expires=99999999999"), "", "")
	f(bedrockKey("X-Amz-Date=yesterday&X-Amz-Expires=86400"), "", "")
	f(bedrockKey("%zz"), "", "")
}
