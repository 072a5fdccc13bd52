package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/admin"
)

// served is a serve in this process, in a folder with its config.
type served struct {
	folder string // of the config, the keys and the state
	admin  string // addresses
	agents string
	log    *serving
}

// serving is the log of a serve, which tells where it listens.
type serving struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *serving) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *serving) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var listensAt = regexp.MustCompile(`msg=listening for=(agents|admin) address=(\S+)`)

// reloadConfig is a config with these subscriptions, whose provider is at base.
func reloadConfig(base, more string, ids ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\nredis: {listen: \"off\"}\nstate_dir: state\nintercept: {enabled: false}\n")
	fmt.Fprintf(&b, "providers: {anthropic: {base_url: %q, allow_plaintext: true}}\n%ssubscriptions:\n", base, more)
	for _, id := range ids {
		fmt.Fprintf(&b, "  - {id: %s, provider: anthropic, credential: {value: file:%s.key}}\n", id, id)
	}
	return b.String()
}

// startServe runs serve with the config at file until the test ends.
func startServe(t *testing.T, folder, file string) *served {
	t.Helper()
	for _, id := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(folder, id+".key"), []byte("key-of-"+id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	var log serving
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, Stdio{strings.NewReader(""), io.Discard, &log}, []string{"HOME=" + folder}, []string{"serve", "-c", file, "--state-dir", filepath.Join(folder, "state")})
	}()
	t.Cleanup(func() {
		stop()
		if code := <-ended; code != exitDone {
			t.Errorf("serve has ended with %d", code)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	s := &served{folder: folder, log: &log}
	within(t, "serve listens", func() bool {
		for _, m := range listensAt.FindAllStringSubmatch(log.String(), -1) {
			if m[1] == "admin" {
				s.admin = m[2]
			} else {
				s.agents = m[2]
			}
		}
		return s.admin != "" && s.agents != ""
	})
	return s
}

// within fails the test when f does not become true.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	if !eventually(func(context.Context) bool { return f() }) {
		t.Fatalf("it did not come: %s", what)
	}
}

func (s *served) call(t *testing.T, method, path string) (status int, body []byte) {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.folder, "state", "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.admin+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := asker.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// subscriptions are the ids that status tells.
func (s *served) subscriptions(t *testing.T) []string {
	t.Helper()
	var status admin.Status
	if _, body := s.call(t, "GET", admin.StatusPath); json.Unmarshal(body, &status) != nil {
		t.Fatalf("no status: %s", body)
	}
	ids := make([]string, 0, len(status.Subscriptions))
	for _, one := range status.Subscriptions {
		ids = append(ids, one.ID)
	}
	return ids
}

// ask is one request of an agent; it returns the answer's body.
func (s *served) ask(t *testing.T) string {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.folder, "state", "agent.token"))
	if err != nil {
		t.Error(err)
		return ""
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.agents+"/anthropic/v1/messages", strings.NewReader(`{"model":"m","max_tokens":1,"messages":[]}`))
	if err != nil {
		t.Error(err)
		return ""
	}
	req.Header.Set("X-Api-Key", strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := asker.Do(req)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

func putFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func relink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

const nobody = "http://127.0.0.1:1"

// A volume of Kubernetes has the file as a link through ..data, which is swapped for
// one to another folder: nothing happens to the file itself.
func TestReloadSeesAMountedVolumeChange(t *testing.T) {
	folder := t.TempDir()
	for name, ids := range map[string][]string{"..first": {"one"}, "..second": {"one", "two"}} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
		putFile(t, filepath.Join(folder, name, "authpool.yaml"), strings.ReplaceAll(reloadConfig(nobody, "", ids...), "file:", "file:"+folder+"/"))
	}
	relink(t, "..first", filepath.Join(folder, "..data"))
	file := filepath.Join(folder, "authpool.yaml")
	relink(t, filepath.Join("..data", "authpool.yaml"), file)
	s := startServe(t, folder, file)
	if got := s.subscriptions(t); !slices.Equal(got, []string{"one"}) {
		t.Fatalf("at first: %q", got)
	}
	relink(t, "..second", filepath.Join(folder, "..data"))
	within(t, "the second subscription is there", func() bool { return slices.Equal(s.subscriptions(t), []string{"one", "two"}) })
}

// The folder of the file may be a link that is swapped for another one.
func TestReloadSeesASwappedFolder(t *testing.T) {
	folder := t.TempDir()
	for name, ids := range map[string][]string{"first": {"one"}, "second": {"one", "two"}} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
		putFile(t, filepath.Join(folder, name, "authpool.yaml"), strings.ReplaceAll(reloadConfig(nobody, "", ids...), "file:", "file:"+folder+"/"))
	}
	relink(t, "first", filepath.Join(folder, "now"))
	s := startServe(t, folder, filepath.Join(folder, "now", "authpool.yaml"))
	if got := s.subscriptions(t); !slices.Equal(got, []string{"one"}) {
		t.Fatalf("at first: %q", got)
	}
	relink(t, "second", filepath.Join(folder, "now"))
	within(t, "the second subscription is there", func() bool { return slices.Equal(s.subscriptions(t), []string{"one", "two"}) })
}

// The folder may be one in which somebody writes all the time.
func TestReloadSeesAChangeInABusyFolder(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "authpool.yaml")
	putFile(t, file, reloadConfig(nobody, "", "one"))
	s := startServe(t, folder, file)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				if err := os.WriteFile(filepath.Join(folder, "busy.log"), []byte(time.Now().String()), 0o600); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-done }()
	putFile(t, file, reloadConfig(nobody, "", "one", "two"))
	within(t, "the second subscription is there", func() bool { return slices.Equal(s.subscriptions(t), []string{"one", "two"}) })
}

// The file may be a link to one in another folder, which is edited where it is.
func TestReloadSeesAChangeBehindALink(t *testing.T) {
	folder, elsewhere := t.TempDir(), t.TempDir()
	real, file := filepath.Join(elsewhere, "real.yaml"), filepath.Join(folder, "authpool.yaml")
	putFile(t, real, reloadConfig(nobody, "", "one"))
	relink(t, real, file)
	s := startServe(t, folder, file)
	putFile(t, real, reloadConfig(nobody, "", "one", "two"))
	within(t, "the second subscription is there", func() bool { return slices.Equal(s.subscriptions(t), []string{"one", "two"}) })
}

// A file that the config names only now is watched, too.
func TestReloadSeesAChangeOfANewFile(t *testing.T) {
	folder, elsewhere := t.TempDir(), t.TempDir()
	file, prices := filepath.Join(folder, "authpool.yaml"), filepath.Join(elsewhere, "prices.yaml")
	putFile(t, file, reloadConfig(nobody, "", "one"))
	s := startServe(t, folder, file)
	putFile(t, prices, "# None yet.\n")
	putFile(t, file, reloadConfig(nobody, "prices: file:"+prices+"\n", "one", "two"))
	within(t, "the second subscription is there", func() bool { return slices.Equal(s.subscriptions(t), []string{"one", "two"}) })
	// Once more, so that the new folder is surely watched by the time of the change.
	putFile(t, file, reloadConfig(nobody, "prices: file:"+prices+"\n", "one"))
	within(t, "it is gone again", func() bool { return slices.Equal(s.subscriptions(t), []string{"one"}) })
	putFile(t, prices, "models: [{provider: anthropic, model: m, input: 3, output: 15}]\n")
	within(t, "the log tells of the prices", func() bool { return strings.Contains(s.log.String(), `changed="prices`) })
}

// A certificate that is renewed in its files is shown to who connects from then on.
func TestReloadSeesARenewedCertificate(t *testing.T) {
	folder := t.TempDir()
	former := makeCertificate(t, folder)
	file := filepath.Join(folder, "authpool.yaml")
	putFile(t, file, strings.Replace(reloadConfig(nobody, "tls: {cert: file:cert.pem, key: file:key.pem}\n", "one"), "listen: 127.0.0.1:0", "listen: 0.0.0.0:0", 1))
	s := startServe(t, folder, file)
	_, port, err := net.SplitHostPort(s.agents)
	if err != nil {
		t.Fatal(err)
	}
	trusted := func(by *x509.CertPool) bool {
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: by}}).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	}
	if !trusted(former) {
		t.Fatal("the first certificate is not shown")
	}
	fresh := makeCertificate(t, folder)
	within(t, "the renewed certificate is shown", func() bool { return trusted(fresh) })
	if trusted(former) {
		t.Error("the former certificate is still shown")
	}
}

// What is under way ends as it began; what comes next is sent where the config says by
// then.
func TestReloadLeavesRequestsUnderWay(t *testing.T) {
	const answer = `{"type":"message","id":"%s","model":"m","content":[],"usage":{"input_tokens":1,"output_tokens":1}}`
	arrived, goOn := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-goOn
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, answer, "first")
	}))
	defer first.Close()
	defer release()
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, answer, "second")
	}))
	defer second.Close()

	folder := t.TempDir()
	file := filepath.Join(folder, "authpool.yaml")
	putFile(t, file, reloadConfig(first.URL, "", "one"))
	s := startServe(t, folder, file)
	under := make(chan string, 1)
	go func() { under <- s.ask(t) }()
	<-arrived
	putFile(t, file, reloadConfig(second.URL, "", "two"))
	if status, body := s.call(t, "POST", admin.ReloadPath); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	if got := s.ask(t); !strings.Contains(got, `"id":"second"`) {
		t.Errorf("after the reload: %s", got)
	}
	release()
	if got := <-under; !strings.Contains(got, `"id":"first"`) {
		t.Errorf("under way: %s", got)
	}
}

// What cannot change keeps all the rest from changing, too.
func TestReloadIsAllOrNothing(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "authpool.yaml")
	good := reloadConfig(nobody, "", "one")
	putFile(t, file, good)
	s := startServe(t, folder, file)
	f := func(text string, wantStatus int, want ...string) {
		t.Helper()
		putFile(t, file, text)
		status, body := s.call(t, "POST", admin.ReloadPath)
		if status != wantStatus {
			t.Errorf("status %d: %s", status, body)
		}
		for _, part := range want {
			if !strings.Contains(string(body), part) {
				t.Errorf("%s is not told: %s", part, body)
			}
		}
		if got := s.subscriptions(t); !slices.Equal(got, []string{"one"}) {
			t.Errorf("subscriptions: %q", got)
		}
	}
	f(good, 200, `"changed":[]`)
	f(reloadConfig(nobody, "shutdown: {grace: 1s}\njournal: {keep: 2h}\n", "one", "two"), 409, "shutdown.grace", "journal.keep")
	f(good, 200, `"changed":[]`)
	f(good+"# nothing but a comment\n", 200, `"changed":[]`)
}
