package credential

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// bedrockPrefix begins a short-term API key of Amazon Bedrock. What follows is, in Base64,
// a URL that was signed for a time, as AWS' token generators make it
// (github.com/aws/aws-bedrock-token-generator-python).
const bedrockPrefix = "bedrock-api-key-"

// amzDate is the layout of X-Amz-Date.
const amzDate = "20060102T150405Z"

// Validity tells from when until when a secret is good by its own words: those of a JSON
// Web Token (RFC 7519, section 4.1) and of a short-term key of Amazon Bedrock. Nobody has
// checked them: they are for warnings. from is zero where only the end is told; ok is
// false for all other secrets, and for those without an end.
func (s Secret) Validity() (from, until time.Time, ok bool) {
	text := s.Reveal()
	if key, is := strings.CutPrefix(text, bedrockPrefix); is {
		return signedValidity(key)
	}
	if parts := strings.Split(text, "."); len(parts) == 3 {
		return claimedValidity(parts[1])
	}
	return from, until, false
}

// signedValidity reads the time of a signed URL.
func signedValidity(key string) (from, until time.Time, ok bool) {
	signed, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return from, until, false
	}
	_, query, _ := strings.Cut(string(signed), "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return from, until, false
	}
	begin, err := time.Parse(amzDate, values.Get("X-Amz-Date"))
	if err != nil {
		return from, until, false
	}
	seconds, err := strconv.ParseUint(values.Get("X-Amz-Expires"), 10, 31)
	if err != nil {
		return from, until, false
	}
	return begin, begin.Add(time.Duration(seconds) * time.Second), true
}

// claimedValidity reads the claims of a token: numbers of seconds, not always whole ones.
func claimedValidity(claims string) (from, until time.Time, ok bool) {
	decoded, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		return from, until, false
	}
	var said struct {
		Issued    float64 `json:"iat"`
		NotBefore float64 `json:"nbf"`
		Expires   float64 `json:"exp"`
	}
	if json.Unmarshal(decoded, &said) != nil || !isTime(said.Expires) {
		return from, until, false
	}
	for _, begin := range []float64{said.Issued, said.NotBefore} {
		if isTime(begin) && from.IsZero() {
			from = time.Unix(int64(begin), 0)
		}
	}
	return from, time.Unix(int64(said.Expires), 0), true
}

// isTime tells whether a number of seconds is one of a year that people mean.
func isTime(seconds float64) bool { return seconds > 0 && seconds < 1<<38 }
