package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/event"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, o audit.Options) *audit.Log {
	t.Helper()
	o.Logger = quiet
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// write opens the log, adds n entries and closes it.
func write(t testing.TB, o audit.Options, n int) {
	t.Helper()
	l := open(t, o)
	for i := range n {
		l.Add(audit.Entry{Kind: audit.ConfigLoaded, Actor: audit.Operator, Fields: map[string]string{"n": fmt.Sprint(i)}})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// lines reads all lines of the log.
func lines(t testing.TB, dir string) (all []audit.Line) {
	t.Helper()
	for _, file := range files(t, dir) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for raw := range bytes.Lines(text) {
			line, err := audit.ParseLine(raw)
			if err != nil {
				t.Fatalf("%s: %v: %s", file, err, raw)
			}
			all = append(all, line)
		}
	}
	return all
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	names, err := audit.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
	}
	return names
}

func kinds(all []audit.Line) string {
	var names []string
	for i := range all {
		names = append(names, string(all[i].Kind))
	}
	return strings.Join(names, " ")
}

func verifies(t testing.TB, dir string) audit.Report {
	t.Helper()
	r, err := audit.Verify(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLogVerifies(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	write(t, audit.Options{Dir: dir}, 3)
	write(t, audit.Options{Dir: dir}, 2)
	const want = "audit.file config.loaded config.loaded config.loaded audit.signed config.loaded config.loaded audit.signed"
	all := lines(t, dir)
	if got := kinds(all); got != want {
		t.Errorf("lines: %s", got)
	}
	r := verifies(t, dir)
	if r.Lines != 8 || r.First != 1 || r.Last != 8 || r.Unsigned != 0 || !r.HeadChecked || r.LastHash != all[7].Hash {
		t.Errorf("report: %+v", r)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "key": 0o600, "head.json": 0o600, "audit-0000000000000001.jsonl": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q: %v %v", name, info, err)
		}
	}
}

// TestSignsInTime: what is written is signed after a while, without a stop.
func TestSignsInTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{Dir: dir})
		defer l.Close()
		l.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator})
		time.Sleep(time.Second)
		synctest.Wait()
		if r := verifies(t, dir); r.Lines != 2 || r.Unsigned != 0 { // head.json has signed them
			t.Errorf("after a second: %+v", r)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := kinds(lines(t, dir)); got != "audit.file serve.started audit.signed" {
			t.Errorf("after ten: %s", got)
		}
	})
}

func TestNothingGetsOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, audit.Options{Dir: dir})
	nasty := "a\nb\x1b[31m\u009b\u202e\"}\x00\xff" + strings.Repeat("ü", 1000)
	l.Used(nasty, nasty, nasty, nasty)
	l.Refused(audit.Refusal{Code: nasty, Agent: nasty, Remote: nasty})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range text {
		if b != '\n' && (b < ' ' || b > '~') {
			t.Fatalf("byte %#x in %s", b, text)
		}
	}
	if len(text) > 64<<10 {
		t.Errorf("%d bytes", len(text))
	}
	all := lines(t, dir)
	if got := all[1].Fields["session"]; !strings.HasPrefix(got, "a\nb\x1b[31m\u009b\u202e\"}\x00\ufffdüü") {
		t.Errorf("session: %q", got)
	}
	verifies(t, dir)
}

// copied copies the log to a folder of its own.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestTampering plays every way to change a log of several files by hand.
func TestTampering(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := audit.Options{Dir: dir, FileSize: 900}
	for range 4 {
		write(t, o, 3)
	}
	all := files(t, dir)
	if len(all) < 3 {
		t.Fatalf("%d files", len(all))
	}
	base := func(n int) string { return filepath.Base(all[n]) }
	edit := func(t *testing.T, path string, f func(lines []string) []string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Join(f(strings.SplitAfter(string(text), "\n")), "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := len(all) - 1
	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string)
		want string
	}{
		{"a line is edited", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(0)), func(l []string) []string {
				l[1] = strings.Replace(l[1], `"n":"0"`, `"n":"1"`, 1)
				return l
			})
		}, base(0) + ":2: its hash is wrong (seq 2)"},
		{"a line is removed", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(0)), func(l []string) []string { return append(l[:2:2], l[3:]...) })
		}, base(0) + ":3: it has seq 4 where 3 was to come"},
		{"a line is put in twice", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(0)), func(l []string) []string { return append(l[:2:2], l[1:]...) })
		}, base(0) + ":3: it has seq 2 where 3 was to come"},
		{"lines are swapped", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(0)), func(l []string) []string { l[1], l[2] = l[2], l[1]; return l })
		}, base(0) + ":2: it has seq 3 where 2 was to come"},
		{"the end is cut off at a signature", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(last)), func(l []string) []string { return l[:1] })
		}, "are missing here: head.json has signed them"},
		{"the last file is removed", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, base(last))); err != nil {
				t.Fatal(err)
			}
		}, "are missing here: head.json has signed them"},
		{"the first file is removed", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, base(0))); err != nil {
				t.Fatal(err)
			}
		}, "are missing before it, and no signed line says"},
		{"a file in the middle is removed", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, base(1))); err != nil {
				t.Fatal(err)
			}
		}, base(2) + ":1: it does not follow the file before"},
		{"two files are swapped", func(t *testing.T, dir string) {
			a, b := filepath.Join(dir, base(0)), filepath.Join(dir, base(1))
			for _, move := range [][2]string{{a, a + "x"}, {b, a}, {a + "x", b}} {
				if err := os.Rename(move[0], move[1]); err != nil {
					t.Fatal(err)
				}
			}
		}, base(0) + ":1: it has seq"},
		{"a line is edited, and all hashes are made anew", func(t *testing.T, dir string) {
			rechain(t, filepath.Join(dir, base(0)))
		}, "its signature is not of the key"},
		{"the same behind the last signature, which is removed", func(t *testing.T, dir string) {
			path := filepath.Join(dir, base(last))
			edit(t, path, func(l []string) []string { return l[:len(l)-2] })
			rechain(t, path)
		}, "are missing here: head.json has signed them"},
		{"head.json is removed", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "head.json")); err != nil {
				t.Fatal(err)
			}
		}, "head.json is missing"},
		{"head.json is edited", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "head.json"), func(l []string) []string {
				l[0] = strings.Replace(l[0], `"seq":`, `"seq":1`, 1)
				return l
			})
		}, "head.json is not signed"},
		{"the log is cut off, and authpool starts again", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(last)), func(l []string) []string { return l[:len(l)-2] })
			write(t, audit.Options{Dir: dir}, 1)
		}, "it tells that the log was changed before a start"},
		{"a line is edited, and authpool starts again", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, base(last)), func(l []string) []string {
				l[1] = strings.Replace(l[1], `"n"`, `"m"`, 1)
				return l
			})
			write(t, audit.Options{Dir: dir}, 1)
		}, base(last) + ":2: its hash is wrong"},
		{"head.json is removed, and authpool starts again", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "head.json")); err != nil {
				t.Fatal(err)
			}
			write(t, audit.Options{Dir: dir}, 1)
		}, "it tells that the log was changed before a start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := copied(t, dir)
			c.do(t, dir)
			_, err := audit.Verify(dir, nil)
			if fault, ok := errors.AsType[*audit.FaultError](err); !ok || !strings.Contains(fault.Error(), c.want) {
				t.Errorf("verify: %v, wanted %q", err, c.want)
			}
		})
	}
}

// rechain edits the second line of a file and makes it and all that follow look right,
// as far as one can without the key.
func rechain(t testing.TB, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var before, out []byte
	for i, raw := range strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n") {
		body, hash, _ := strings.Cut(strings.TrimSuffix(raw, "\n"), `,"hash":"`)
		sum, err := hex.DecodeString(strings.TrimSuffix(hash, `"}`))
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			body = strings.Replace(body, "operator", "nobody", 1)
		}
		if i > 0 {
			digest := sha256.Sum256(append(bytes.Clone(before), body...))
			sum = digest[:]
		}
		before = sum
		out = fmt.Appendf(out, "%s,\"hash\":\"%x\"}\n", body, sum)
	}
	if bytes.Equal(out, text) {
		t.Fatal("nothing was edited")
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLinesMoved: lines of a log of several files cannot be removed, put in or swapped,
// not even whole and from one file to another.
func TestLinesMoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 4 {
		write(t, audit.Options{Dir: dir, FileSize: 900}, 3)
	}
	paths := files(t, dir)
	was := make(map[string][]string, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		was[path] = slices.Collect(strings.Lines(string(text)))
	}
	save := func(rt *rapid.T, lines map[string][]string) {
		for path, l := range lines {
			if err := os.WriteFile(path, []byte(strings.Join(l, "")), 0o600); err != nil {
				rt.Fatal(err)
			}
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		now := maps.Clone(was)
		for range rapid.IntRange(1, 3).Draw(rt, "changes") {
			from := paths[rapid.IntRange(0, len(paths)-1).Draw(rt, "from")]
			to := paths[rapid.IntRange(0, len(paths)-1).Draw(rt, "to")]
			if len(now[from]) == 0 || len(now[to]) == 0 {
				continue
			}
			a := rapid.IntRange(0, len(now[from])-1).Draw(rt, "a")
			b := rapid.IntRange(0, len(now[to])-1).Draw(rt, "b")
			line := now[from][a]
			switch rapid.SampledFrom([]string{"remove", "copy", "swap"}).Draw(rt, "how") {
			case "remove":
				now[from] = slices.Delete(slices.Clone(now[from]), a, a+1)
			case "copy":
				now[to] = slices.Insert(slices.Clone(now[to]), b, line)
			case "swap":
				now[from] = slices.Clone(now[from])
				now[to] = slices.Clone(now[to])
				now[from][a], now[to][b] = now[to][b], now[from][a]
			}
		}
		save(rt, now)
		defer save(rt, was)
		_, err := audit.Verify(dir, nil)
		same := maps.EqualFunc(now, was, slices.Equal[[]string])
		if _, found := errors.AsType[*audit.FaultError](err); found == same {
			rt.Fatalf("same: %t, verify: %v", same, err)
		}
	})
}

// FuzzParseLine: no text is taken for a line that is not one byte for byte.
func FuzzParseLine(f *testing.F) {
	dir := f.TempDir()
	write(f, audit.Options{Dir: dir}, 1)
	text, err := os.ReadFile(files(f, dir)[0])
	if err != nil {
		f.Fatal(err)
	}
	for raw := range bytes.Lines(text) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		line, err := audit.ParseLine(raw)
		if err != nil {
			return
		}
		if want := `,"hash":"` + line.Hash + `"}`; !strings.HasSuffix(strings.TrimSuffix(string(raw), "\n"), want) {
			t.Errorf("%q has the hash %q", raw, line.Hash)
		}
	})
}

// TestAnotherKey: who has no key can write a whole log of his own, and the public key
// from elsewhere shows it.
func TestAnotherKey(t *testing.T) {
	t.Parallel()
	ours, theirs := t.TempDir(), t.TempDir()
	write(t, audit.Options{Dir: ours}, 2)
	write(t, audit.Options{Dir: theirs}, 2)
	key, err := audit.ParsePublicKey(verifies(t, ours).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(ours, key); err != nil {
		t.Error(err)
	}
	if _, err := audit.Verify(theirs, key); err == nil || !strings.Contains(err.Error(), "is signed by the key") {
		t.Errorf("another's log: %v", err)
	}
	if _, err := audit.Verify(theirs, make(ed25519.PublicKey, ed25519.PublicKeySize)); err == nil {
		t.Error("a key of zeros verifies")
	}
}

// TestEveryByte: no byte of the files can be another one, none can be missing, none
// can be too many.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, audit.Options{Dir: dir, FileSize: 700}, 2)
	write(t, audit.Options{Dir: dir, FileSize: 700}, 2)
	verifies(t, dir)
	all := append(files(t, dir), filepath.Join(dir, "head.json"))
	if len(all) != 3 {
		t.Fatalf("files: %v", all)
	}
	rapid.Check(t, func(rt *rapid.T) {
		path := all[rapid.IntRange(0, len(all)-1).Draw(rt, "file")]
		text, err := os.ReadFile(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				rt.Fatal(err)
			}
		}()
		at := rapid.IntRange(0, len(text)-1).Draw(rt, "at")
		b := rapid.Byte().Draw(rt, "byte")
		changed := bytes.Clone(text)
		switch rapid.IntRange(0, 3).Draw(rt, "how") {
		case 0:
			changed[at] = b
		case 1:
			changed = append(changed[:at], changed[at+1:]...)
		case 2:
			changed = append(changed[:at], append([]byte{b}, changed[at:]...)...)
		case 3:
			changed = changed[:at]
		}
		isHead := strings.HasSuffix(path, "head.json")
		if bytes.Equal(changed, text) || isHead && bytes.Equal(bytes.TrimSpace(changed), bytes.TrimSpace(text)) {
			return
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			rt.Fatal(err)
		}
		_, err = audit.Verify(dir, nil)
		if isHead && err == nil {
			return // another way to write the same, as a space between: its signature holds
		}
		if _, ok := errors.AsType[*audit.FaultError](err); !ok {
			rt.Fatalf("%s:\n%s\n%v", path, changed, err)
		}
	})
}

// TestTornTail: a crash may leave any part of the last line. The log goes on, tells of
// it, and verifies.
func TestTornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, audit.Options{Dir: dir}, 2)
	path := files(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := t.TempDir() // the log goes on there for one line, which is then torn
	if err := os.CopyFS(next, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	write(t, audit.Options{Dir: next}, 1)
	longer, err := os.ReadFile(files(t, next)[0])
	if err != nil {
		t.Fatal(err)
	}
	line := longer[len(whole) : len(whole)+bytes.IndexByte(longer[len(whole):], '\n')+1]
	for n := range len(line) + 1 {
		dir := copied(t, dir)
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), append(bytes.Clone(whole), line[:n]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verifies(t, dir); r.Torn != (n > 0 && n < len(line)) {
			t.Errorf("after %d bytes of a line, before a start: %+v", n, r)
		}
		write(t, audit.Options{Dir: dir}, 1)
		verifies(t, dir)
		want := "audit.file config.loaded config.loaded audit.signed audit.cut config.loaded audit.signed"
		switch n {
		case 0:
			want = strings.Replace(want, "audit.cut ", "", 1)
		case len(line):
			want = strings.Replace(want, "audit.cut", "config.loaded audit.unsigned", 1)
		}
		if got := kinds(lines(t, dir)); got != want {
			t.Fatalf("after %d bytes of a line: %s", n, got)
		}
	}
	// The first line of a file may be torn, too.
	for _, text := range []string{"", `{"seq":1,`} {
		dir := t.TempDir()
		write(t, audit.Options{Dir: dir}, 0)
		if err := os.WriteFile(filepath.Join(dir, "audit-0000000000000001.jsonl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, audit.Options{Dir: dir}, 1)
		verifies(t, dir)
	}
}

// TestRotation: the files are bounded, the chain goes on, and what is removed is told.
func TestRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := audit.Options{Dir: dir, FileSize: 2000, Files: 3}
	for range 30 {
		write(t, o, 4)
		r := verifies(t, dir)
		if r.Files > 3 || r.Unsigned != 0 {
			t.Fatalf("report: %+v", r)
		}
	}
	r := verifies(t, dir)
	if r.First == 1 || r.Files != 3 {
		t.Errorf("report: %+v", r)
	}
	if !strings.Contains(kinds(lines(t, dir)), "audit.removed audit.signed") {
		t.Error("nothing tells of what was removed")
	}
	for _, file := range files(t, dir) {
		if r, err := audit.Verify(file, nil); err != nil || r.Files != 1 {
			t.Errorf("alone, %s: %+v, %v", file, r, err)
		}
	}
	// Removing one more by hand is no removal for room.
	if err := os.Remove(files(t, dir)[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(dir, nil); err == nil {
		t.Error("a file is gone, and nobody minds")
	}
}

// TestFullDisk: nobody waits while nothing can be written. What found no room is
// counted, and told when it can be again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var told []string
		l, err := audit.OpenFailing(audit.Options{Dir: dir, Logger: quiet, Failing: func(err error) {
			told = append(told, fmt.Sprint(err))
		}}, func(f *os.File, b []byte, off int64) (int, error) {
			if !full.Load() {
				return f.WriteAt(b, off)
			}
			n, _ := f.WriteAt(b[:len(b)/2], off) // as far as there is room
			return n, syscall.ENOSPC
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator})
		time.Sleep(time.Second)
		full.Store(true)
		began := time.Now()
		const extra = 100
		for range audit.QueueRoom + audit.BatchRoom + extra {
			l.Add(audit.Entry{Kind: audit.ConfigLoaded, Actor: audit.Operator})
			synctest.Wait() // the owner has taken what it takes
		}
		if !time.Now().Equal(began) {
			t.Error("somebody waited")
		}
		time.Sleep(5 * time.Second)
		full.Store(false)
		time.Sleep(5 * time.Second)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if len(told) != 2 || told[0] != syscall.ENOSPC.Error() || told[1] != "<nil>" {
			t.Errorf("told: %q", told)
		}
		all := lines(t, dir)
		loaded, lost := 0, ""
		for i := range all {
			if all[i].Kind == audit.ConfigLoaded {
				loaded++
			}
			if all[i].Kind == "audit.dropped" {
				lost += all[i].Fields["count"] + " "
			}
		}
		if loaded != audit.QueueRoom+audit.BatchRoom || lost != "100 " {
			t.Errorf("%d are written, lost are %s", loaded, lost)
		}
		verifies(t, dir)
	})
}

// TestUses: a session's use of a subscription is written once a day.
func TestUses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{Dir: dir})
		for range 3 {
			for range 10 {
				l.Used("coder", "anthropic", "s1", "team-a")
				l.Used("coder", "anthropic", "s2", "team-a")
				l.Used("coder", "anthropic", "s1", "team-b")
			}
			time.Sleep(12 * time.Hour) // from midnight: two of the three are of one day
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, line := range lines(t, dir) {
			if line.Kind == audit.CredentialUsed {
				got = append(got, line.Time[:10]+" "+line.Actor+" "+line.Fields["session"]+" "+line.Fields["subscription"])
			}
		}
		want := "2000-01-01 coder s1 team-a|2000-01-01 coder s2 team-a|2000-01-01 coder s1 team-b|" +
			"2000-01-02 coder s1 team-a|2000-01-02 coder s2 team-a|2000-01-02 coder s1 team-b"
		if strings.Join(got, "|") != want {
			t.Errorf("used: %q", got)
		}
	})
}

// TestUsesAllocateNothing: it is asked at every request.
func TestUsesAllocateNothing(t *testing.T) {
	l := open(t, audit.Options{Dir: t.TempDir()})
	defer l.Close()
	l.Used("coder", "anthropic", "s1", "team-a")
	if n := testing.AllocsPerRun(1000, func() { l.Used("coder", "anthropic", "s1", "team-a") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRefusals: a stranger who knocks for an hour leaves a line a minute.
func TestRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{Dir: dir})
		const knocks = 3600
		for i := range knocks {
			l.Refused(audit.Refusal{Code: "unauthorized", Remote: "192.0.2.1", Request: fmt.Sprint(i)})
			time.Sleep(time.Second)
		}
		l.Refused(audit.Refusal{Code: "brake", Agent: "coder", Session: "s1"})
		time.Sleep(time.Hour)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		sum, n := 0, 0
		for _, line := range lines(t, dir) {
			if line.Kind != audit.RequestRefused {
				continue
			}
			if line.Actor == "coder" {
				if line.Fields["code"] != "brake" || line.Fields["session"] != "s1" || line.Fields["count"] != "1" {
					t.Errorf("brake: %v", line)
				}
				continue
			}
			var count int
			if _, err := fmt.Sscan(line.Fields["count"], &count); err != nil || line.Actor != audit.Stranger {
				t.Fatal(line, err)
			}
			sum, n = sum+count, n+1
		}
		if sum != knocks || n > 62 {
			t.Errorf("%d lines tell of %d refusals", n, sum)
		}
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, audit.Options{Dir: dir})
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	l.Event(&event.Event{Time: at, Kind: event.SubscriptionBroken, Subscription: "team-a", Reason: "breaker", Until: at.Add(time.Minute)})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got := lines(t, dir)[1]
	if got.Kind != "subscription.broken" || got.Time != "2026-11-22T10:00:00.000000Z" || got.Actor != audit.Itself ||
		fmt.Sprint(got.Fields) != "map[reason:breaker subscription:team-a until:2026-11-22T10:01:00Z]" {
		t.Errorf("%+v", got)
	}
}

func TestNobodyListens(*testing.T) {
	var l *audit.Log
	l.Add(audit.Entry{})
	l.Used("", "", "", "")
	l.Refused(audit.Refusal{})
	l.Event(&event.Event{})
}

func BenchmarkUsed(b *testing.B) {
	l := open(b, audit.Options{Dir: b.TempDir()})
	defer l.Close()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Used("coder", "anthropic", "s1", "team-a")
		}
	})
}
