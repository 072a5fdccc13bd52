package credential_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/authpool/authpool/pool/credential"
)

const canary = "sk-canary-0123456789-abcdef"

func TestNoEncoderPrintsASecret(t *testing.T) {
	secret := credential.NewSecret(canary)
	type holder struct {
		Secret  credential.Secret
		Pointer *credential.Secret
		List    []credential.Secret
		Map     map[string]credential.Secret
	}
	h := holder{secret, &secret, []credential.Secret{secret}, map[string]credential.Secret{"k": secret}}
	for _, value := range []any{secret, &secret, h, &h, credential.Credential{Scheme: credential.APIKey, Secret: secret}, []any{secret}} {
		outputs := map[string]string{}
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %X %d %T%v %p %10s %-5v %c %U %t %e %b %o") {
			outputs[verb] = fmt.Sprintf(verb, value)
		}
		outputs["Sprint"] = fmt.Sprint(value)
		outputs["Errorf"] = fmt.Errorf("x: %v", value).Error()
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", value)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", value)
		outputs["slog"] = log.String()
		if text, err := json.Marshal(value); err == nil {
			outputs["json"] = string(text)
		} else {
			t.Errorf("json: %v", err)
		}
		if text, err := yaml.Marshal(value); err == nil {
			outputs["yaml"] = string(text)
		} else {
			t.Errorf("yaml: %v", err)
		}
		for how, text := range outputs {
			// Hexadecimal and byte-list forms would be the text in another dress.
			for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), strings.Trim(fmt.Sprintf("%d", []byte(canary)), "[]")} {
				if strings.Contains(text, form) {
					t.Errorf("%s of %T shows the secret: %s", how, value, text)
				}
			}
		}
	}
}

func TestHintSparesShortSecrets(t *testing.T) {
	for text, want := range map[string]string{"": "(empty)", "short": "***", "fifteen-letters": "***", canary: "***ef"} {
		if got := credential.NewSecret(text).Hint(); got != want {
			t.Errorf("hint of %d characters is %q, want %q", len(text), got, want)
		}
	}
}
