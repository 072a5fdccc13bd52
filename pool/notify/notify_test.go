package notify_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
)

func TestSignature(t *testing.T) {
	const want = "t=1795374000,v1=ae8ff902274d56efd62a8b9c014a9521edb3f80a491b18754a36e638902abaf7"
	if got := notify.Sign("whsec-vector", time.Unix(1795374000, 999), []byte(`{"id":"1"}`)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		plain := hook("*")
		plain.URL, plain.Format = "http://127.0.0.1:9/T0-secret-slack", notify.Slack
		n := open(t, t.TempDir(), r, hook("subscription.*"), plain)
		e := limited("team-a")
		e.Model, e.Agent, e.Session, e.Text = "m", "a", "s", `model "<!channel>" & more`
		n.bus.Emit(e)
		n.bus.Emit(event.Event{Kind: event.RedisLost, Text: "Redis does not answer"})
		synctest.Wait()
		all := r.take()
		if len(all) != 3 {
			t.Fatalf("%d notifications, want 3: the first target wants one, the second both", len(all))
		}
		slices.SortFunc(all, func(a, b got) int { return strings.Compare(b.body, a.body) })
		slackRedis := slices.IndexFunc(all, func(g got) bool { return strings.HasPrefix(g.body, `{"text":"*redis.lost* Redis does not answer (`) })
		slackLimited := slices.IndexFunc(all, func(g got) bool {
			return strings.HasPrefix(g.body, `{"text":"*subscription.limited* model \"\u0026lt;!channel\u0026gt;\" \u0026amp; more, until 2000-01-01 01:00:00 UTC (`)
		})
		i := slices.IndexFunc(all, func(g got) bool { return g.ID != "" })
		if slackRedis < 0 || slackLimited < 0 || i < 0 {
			t.Fatalf("came %+v", all)
		}
		m := all[i]
		host, _ := os.Hostname()
		want := fmt.Sprintf(`{"id":%q,"event":"subscription.limited","time":"2000-01-01T00:00:00Z","host":%q,"provider":"anthropic","subscription":"team-a","model":"m","agent":"a","session":"s","reason":"window","until":"2000-01-01T01:00:00Z","text":"model \"\u003c!channel\u003e\" \u0026 more"}`, m.ID, host)
		if m.body != want {
			t.Errorf("got  %s\nwant %s", m.body, want)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", notify.EventHeader: "subscription.limited", notify.IDHeader: m.ID,
			notify.SignatureHeader: notify.Sign(secret, m.at, []byte(m.body)),
		} {
			if got := m.head.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		n.close()
	})
}

// What becomes of a notification by the receiver's first answer; the next is 204.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		attempts int           // until it is over
		least    time.Duration // between the first two
		most     time.Duration
	}{
		"200":          {answer: status(200), attempts: 1},
		"204":          {answer: status(204), attempts: 1},
		"500":          {answer: status(500), attempts: 2, most: time.Second + time.Millisecond},
		"408":          {answer: status(408), attempts: 2, most: time.Second + time.Millisecond},
		"400":          {answer: status(400), attempts: 1},
		"404":          {answer: status(404), attempts: 1},
		"410":          {answer: status(410), attempts: 1},
		"not modified": {answer: status(304), attempts: 1},
		"retry after": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		}, attempts: 2, least: 30 * time.Second, most: 31 * time.Second},
		"retry after a year": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "31536000")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, attempts: 2, least: 5 * time.Minute, most: 5*time.Minute + time.Second},
		"redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:9/elsewhere", http.StatusTemporaryRedirect)
		}, attempts: 1},
		"hangs": {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, attempts: 2, least: 10 * time.Second, most: 12 * time.Second},
		"cuts":  {answer: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, attempts: 2, most: 2 * time.Second},
		"slow head": {answer: func(w http.ResponseWriter, r *http.Request) {
			conn, out, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer func() { _ = conn.Close() }()
			for _, b := range []byte("HTTP/1.1 204 No Content\r\nX-Slow: very slow\r\n\r\n") {
				time.Sleep(time.Second)
				if out.WriteByte(b) != nil || out.Flush() != nil {
					return
				}
			}
		}, attempts: 2, least: 10 * time.Second, most: 12 * time.Second},
		"huge head": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Huge", strings.Repeat("x", 100<<10))
		}, attempts: 2, most: 2 * time.Second},
		"endless body": {answer: func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		}, attempts: 1},
		"no HTTP": {answer: func(w http.ResponseWriter, _ *http.Request) {
			conn, out, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = out.WriteString("220 smtp.example.com\r\n\r\n")
			_ = out.Flush()
		}, attempts: 2, most: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReceiver()
				defer r.stop()
				n := open(t, t.TempDir(), r, hook("*"))
				tries := 0
				r.answers(func(w http.ResponseWriter, req *http.Request) {
					if tries++; tries == 1 {
						c.answer(w, req)
						return
					}
					w.WriteHeader(http.StatusNoContent)
				})
				n.bus.Emit(limited("one"))
				time.Sleep(10 * time.Minute)
				all := r.take()
				if len(all) != c.attempts {
					t.Fatalf("%d attempts, want %d", len(all), c.attempts)
				}
				if c.attempts == 2 {
					if all[0].ID != all[1].ID || all[0].body != all[1].body {
						t.Error("the repetition is another one")
					}
					if d := all[1].at.Sub(all[0].at); d < c.least || d > c.most {
						t.Errorf("sent again after %v, want %v to %v", d, c.least, c.most)
					}
				}
				// Whatever it was, the next one goes out.
				n.bus.Emit(limited("two"))
				synctest.Wait()
				if all := r.take(); !slices.Equal(subscriptions(all), []string{"two"}) {
					t.Errorf("then came %v", subscriptions(all))
				}
				n.close()
			})
		})
	}
}

// A receiver that is away for hours is asked less and less often, and then gets
// everything in order. Nobody else waits for it.
func TestReceiverThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		other := hook("*")
		other.URL = "http://127.0.0.1:9/T0-secret-other"
		n := open(t, t.TempDir(), r, hook("*"), other)
		r.answers(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "path") {
				w.WriteHeader(http.StatusBadGateway)
			}
		})
		for i := range 5 {
			n.bus.Emit(limited(strconv.Itoa(i)))
		}
		time.Sleep(5 * time.Hour)
		all := r.take()
		failed := slices.DeleteFunc(slices.Clone(all), func(g got) bool { return g.Subscription != "0" })
		if len(all)-len(failed) != 4 {
			t.Errorf("the other target got %d more, want 4", len(all)-len(failed))
		}
		if len(failed) < 60 || len(failed) > 200 { // one in two and a half minutes, on average
			t.Errorf("%d attempts in five hours", len(failed))
		}
		if gap := failed[7].at.Sub(failed[6].at); gap < time.Second {
			t.Errorf("after 6 failures the next attempt came after %v: the breaker did not open", gap)
		}
		if !strings.Contains(n.logs.String(), "nothing is sent to it for a minute") {
			t.Error("the breaker was not told of")
		}
		r.answers(nil)
		time.Sleep(10 * time.Minute)
		if all := subscriptions(r.take()); !slices.Equal(all, []string{"0", "1", "2", "3", "4"}) {
			t.Errorf("then came %v", all)
		}
		n.close()
	})
}

func TestOldNewsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		n := open(t, t.TempDir(), r, hook("*"))
		r.answers(status(http.StatusInternalServerError))
		n.bus.Emit(limited("old"))
		time.Sleep(20 * time.Hour)
		n.bus.Emit(limited("new"))
		time.Sleep(5 * time.Hour)
		_ = r.take()
		r.answers(nil)
		time.Sleep(10 * time.Minute)
		if all := subscriptions(r.take()); !slices.Equal(all, []string{"new"}) {
			t.Errorf("after a day came %v", all)
		}
		n.close()
	})
}

// What another process of the fleet has claimed is not told here.
func TestClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		var bus event.Bus
		asked := 0
		n, err := notify.Open(notify.Options{Folder: t.TempDir(), Dial: r.dial, Claim: func(e event.Event) bool {
			asked++
			return e.Subscription == "mine"
		}}, []notify.Target{hook("budget.*")}, &bus)
		if err != nil {
			t.Fatal(err)
		}
		bus.Emit(event.Event{Kind: event.Budget80, Subscription: "theirs"})
		bus.Emit(event.Event{Kind: event.Budget80, Subscription: "mine"})
		bus.Emit(event.Event{Kind: event.RedisLost}) // nobody wants it
		synctest.Wait()
		if all := subscriptions(r.take()); !slices.Equal(all, []string{"mine"}) || asked != 2 {
			t.Errorf("came %v, asked %d times", all, asked)
		}
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A subscription that flaps is told of once, and what it came to once more at the end
// of the quiet time.
func TestTheSameIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		n := open(t, t.TempDir(), r, hook("*"))
		for range 100 {
			n.bus.Emit(limited("one"))
			n.bus.Emit(event.Event{Kind: event.SubscriptionRecovered, Provider: "anthropic", Subscription: "one"})
			n.bus.Emit(limited("two"))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if all := r.take(); len(all) != 3 {
			t.Errorf("%d notifications at once, want 3", len(all))
		}
		last := limited("one")
		last.Reason = "the last"
		n.bus.Emit(last)
		time.Sleep(5 * time.Minute)
		all := r.take()
		if len(all) != 3 {
			t.Fatalf("%d notifications later, want 3", len(all))
		}
		for _, g := range all {
			want := 98
			if g.Subscription == "one" && g.Event == event.SubscriptionLimited {
				want++
				if g.Reason != "the last" {
					t.Errorf("the last one was lost: %+v", g.Message)
				}
			}
			if g.Repeated != want {
				t.Errorf("%s of %s was repeated %d times, want %d", g.Event, g.Subscription, g.Repeated, want)
			}
		}
		time.Sleep(20 * time.Minute)
		if all := r.take(); len(all) != 0 {
			t.Errorf("then came %d more", len(all))
		}
		n.bus.Emit(limited("one")) // it is quiet again
		synctest.Wait()
		if all := r.take(); len(all) != 1 || all[0].Repeated != 0 {
			t.Errorf("after that came %v", all)
		}
		n.close()
	})
}

// An agent that asks for a thousand models makes no thousand messages at once.
func TestOneKindOfOneSubscriptionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		n := open(t, t.TempDir(), r, hook("*"))
		for i := range 300 {
			e := limited("one")
			e.Model = strconv.Itoa(i)
			n.bus.Emit(e)
		}
		n.bus.Emit(limited("two"))
		synctest.Wait()
		if all := r.take(); len(all) != 11 {
			t.Errorf("%d at once, want 10 of one and 1 of two", len(all))
		}
		time.Sleep(time.Hour)
		if all := r.take(); len(all) == 0 || len(all) > 70 {
			t.Errorf("%d within an hour, want one a minute", len(all))
		}
		n.close()
	})
}

func TestQueueOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		folder := t.TempDir()
		n := open(t, folder, r, hook("*"))
		r.answers(status(http.StatusBadGateway))
		for _, sub := range []string{"one", "two", "three"} {
			n.bus.Emit(limited(sub))
			synctest.Wait()
		}
		n.close()
		id := r.take()[0].ID

		r.answers(nil)
		n = open(t, folder, r, hook("*"))
		time.Sleep(time.Minute)
		all := r.take()
		if !slices.Equal(subscriptions(all), []string{"one", "two", "three"}) || all[0].ID != id {
			t.Errorf("after a restart came %v", subscriptions(all))
		}
		n.close()

		n = open(t, folder, r, hook("*"))
		time.Sleep(time.Minute)
		if all := r.take(); len(all) != 0 {
			t.Errorf("what was delivered came again: %v", subscriptions(all))
		}
		n.close()
	})
}

// What a crash, a full disk or a curious hand leaves in the file.
func TestQueueFileIsDamaged(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(text string) string
		want   []string
	}{
		"torn":         {func(s string) string { return s[:len(s)-10] }, []string{"one", "two"}},
		"torn newline": {func(s string) string { return s[:len(s)-1] }, []string{"one", "two"}},
		"middle": {func(s string) string {
			lines := strings.SplitAfter(s, "\n")
			return lines[0] + "\x00\x00rubbish\n" + lines[2]
		}, []string{"one", "three"}},
		"huge line": {func(s string) string { return strings.Repeat("x", 1<<20) + "\n" + s }, []string{"one", "two", "three"}},
		"empty":     {func(string) string { return "" }, nil},
		"unknown":   {func(s string) string { return "{}\n{\"done\":\"none\"}\n{\"add\":{}}\n" + s }, []string{"one", "two", "three"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReceiver()
				defer r.stop()
				folder := t.TempDir()
				n := open(t, folder, r, hook("*"))
				r.answers(status(http.StatusBadGateway))
				for _, sub := range []string{"one", "two", "three"} {
					n.bus.Emit(limited(sub))
				}
				synctest.Wait()
				n.close()
				_ = r.take()
				file := queueFile(t, folder)
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(c.damage(string(text))), 0o600); err != nil {
					t.Fatal(err)
				}
				r.answers(nil)
				n = open(t, folder, r, hook("*"))
				n.bus.Emit(limited("four"))
				time.Sleep(time.Minute)
				if all := subscriptions(r.take()); !slices.Equal(all, append(slices.Clone(c.want), "four")) {
					t.Errorf("came %v, want %v and four", all, c.want)
				}
				n.close()
			})
		})
	}
}

// queueFile is the only queue of a folder; others can neither read nor list it.
func queueFile(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if strings.Contains(files[0], "T0-secret") {
		t.Errorf("the name of %s tells the URL", files[0])
	}
	return files[0]
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		folder := t.TempDir()
		n := open(t, folder, r, hook("*"))
		r.answers(status(http.StatusBadGateway))
		for i := range 1100 {
			n.bus.Emit(limited(strconv.Itoa(i)))
			if i%100 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		_ = r.take()
		r.answers(nil)
		time.Sleep(10 * time.Minute)
		if all := subscriptions(r.take()); len(all) != 1000 || all[0] != "100" || all[999] != "1099" {
			t.Errorf("%d came; want the last 1000", len(all))
		}
		n.close()

		// Nor does a file that another version has left make it longer.
		var text strings.Builder
		for i := range 1100 {
			e := limited(strconv.Itoa(i))
			e.Time = time.Now()
			line, err := json.Marshal(map[string]any{"add": map[string]any{"id": strconv.Itoa(i), "event": e}})
			if err != nil {
				t.Fatal(err)
			}
			text.Write(append(line, '\n'))
		}
		if err := os.WriteFile(queueFile(t, folder), []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		n = open(t, folder, r, hook("*"))
		time.Sleep(time.Minute)
		if all := subscriptions(r.take()); len(all) != 1000 || !slices.Contains(all, "1099") {
			t.Errorf("%d came of the file; want the last 1000", len(all))
		}
		n.close()
	})
}

func TestQueueOfAFormerTargetIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		folder := t.TempDir()
		former := hook("*")
		former.URL = "http://127.0.0.1:9/T0-secret-former"
		n := open(t, folder, r, former)
		r.answers(status(http.StatusBadGateway))
		n.bus.Emit(limited("one"))
		synctest.Wait()
		n.close()
		_ = r.take()
		r.answers(nil)
		n = open(t, folder, r, hook("*"))
		time.Sleep(time.Hour)
		if all := r.take(); len(all) != 0 {
			t.Errorf("another target got %v", subscriptions(all))
		}
		_ = queueFile(t, folder)
		n.close()
	})
}

// Close sends what was emitted right before it, and does not hang on a receiver that
// does.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		folder := t.TempDir()
		n := open(t, folder, r, hook("*"))
		n.bus.Emit(limited("one"))
		n.bus.Emit(limited("one")) // held, as it is the same
		n.bus.Emit(limited("two"))
		n.close()
		if all := subscriptions(r.take()); !slices.Equal(all, []string{"one", "two", "one"}) {
			t.Errorf("before the end came %v", all)
		}

		n = open(t, folder, r, hook("*"))
		r.answers(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		n.bus.Emit(limited("three"))
		began := time.Now()
		n.close()
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("Close took %v, want 3 s", d)
		}
		_ = r.take()
		r.answers(nil)
		n = open(t, folder, r, hook("*"))
		synctest.Wait()
		if all := subscriptions(r.take()); !slices.Equal(all, []string{"three"}) {
			t.Errorf("after the restart came %v", all)
		}
		n.close()
	})
}

func TestTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReceiver()
		defer r.stop()
		other := hook("redis.lost")
		other.URL = "http://127.0.0.1:9/T0-secret-other"
		n := open(t, t.TempDir(), r, hook("budget.*"), other)
		r.answers(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "other") {
				w.WriteHeader(http.StatusForbidden)
			}
		})
		results := n.Test(context.Background(), event.Budget80, -1)
		if len(results) != 2 || results[0].Err != nil || results[0].Status != 200 || results[0].Host != "127.0.0.1" ||
			results[1].Err == nil || results[1].Status != 403 {
			t.Errorf("results %+v", results)
		}
		if all := r.take(); len(all) != 2 || all[0].Event != event.Budget80 || all[0].Text == "" {
			t.Errorf("came %+v", all)
		}
		if results := n.Test(context.Background(), event.Budget80, 1); len(results) != 1 || results[0].Index != 1 {
			t.Errorf("of one: %+v", results)
		}
		if results := n.Test(context.Background(), event.Budget80, 2); len(results) != 0 {
			t.Errorf("of none: %+v", results)
		}
		n.close()
	})
}
