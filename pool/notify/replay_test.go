package notify_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool/notify"
)

// receive is a receiver as the README tells people to write one.
func receive(secret, signature, body string, now time.Time, seen map[string]bool, id string) error {
	stamp, sum, ok := strings.Cut(signature, ",v1=")
	seconds, err := strconv.ParseInt(strings.TrimPrefix(stamp, "t="), 10, 64)
	if !ok || err != nil {
		return errors.New("no signature")
	}
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(strings.TrimPrefix(stamp, "t=") + "." + body))
	if given, err := hex.DecodeString(sum); err != nil || !hmac.Equal(given, mac.Sum(nil)) {
		return errors.New("a wrong signature")
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > 5*time.Minute || age < -5*time.Minute {
		return errors.New("an old one")
	}
	if seen[id] {
		return errors.New("seen")
	}
	seen[id] = true
	return nil
}

// Who has overheard a notification cannot send it again, now or later, nor make another
// of it.
func TestReplayIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		n := open(t, t.TempDir(), r, hook("subscription.*"))
		defer n.close()
		n.bus.Emit(limited("team-a"))
		synctest.Wait()
		all := r.take()
		if len(all) != 1 {
			t.Fatalf("%d came", len(all))
		}
		m := all[0]
		signature := m.head.Get(notify.SignatureHeader)
		seen := map[string]bool{}
		if err := receive(secret, signature, m.body, time.Now(), seen, m.ID); err != nil {
			t.Fatalf("the first time: %v", err)
		}
		later := strings.Replace(signature, "t=", "t=1", 1)
		for name, err := range map[string]error{
			"again at once":           receive(secret, signature, m.body, time.Now(), seen, m.ID),
			"after the ids were lost": receive(secret, signature, m.body, time.Now().Add(6*time.Minute), map[string]bool{}, m.ID),
			"with another time":       receive(secret, later, m.body, time.Now(), map[string]bool{}, m.ID),
			"with another text":       receive(secret, signature, strings.Replace(m.body, "team-a", "team-b", 1), time.Now(), map[string]bool{}, m.ID),
			"signed by somebody else": receive("another secret", signature, m.body, time.Now(), map[string]bool{}, m.ID),
			"without a signature":     receive(secret, "", m.body, time.Now(), map[string]bool{}, m.ID),
		} {
			if err == nil {
				t.Errorf("%s: it is taken", name)
			}
		}
	})
}
