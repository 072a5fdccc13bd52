package admin_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/admin"
)

// RotateKeys implements admin.Sealer.
func (s *sources) RotateKeys(context.Context) (admin.KeysRotated, error) {
	s.rotated++
	return admin.KeysRotated{Keys: 2, Added: true, Resealed: 3, Failed: map[string]string{"team-a": "it does not open"}}, s.err
}

func TestRotateKeys(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(key string, status int, says string) {
		t.Helper()
		a := get(t, base+admin.KeysRotatePath, func(r *http.Request) {
			r.Method = http.MethodPost
			r.Header.Set("Authorization", "Bearer "+key)
		})
		if a.status != status || !strings.Contains(a.body, says) {
			t.Errorf("%d %s, want %d %s", a.status, a.body, status, says)
		}
	}
	f(viewer, http.StatusForbidden, "")
	if src.rotated != 0 {
		t.Error("a viewer rotated keys")
	}
	f(token, http.StatusOK, `{"keys":2,"added":true,"resealed":3,"failed":{"team-a":"it does not open"}}`)
	src.err = &admin.RefusedError{Status: http.StatusConflict, Err: errors.New("there is no keyset")}
	f(token, http.StatusConflict, "there is no keyset")
	src.err = errors.New("redis is away")
	f(token, http.StatusServiceUnavailable, "the keys were not rotated")
}
