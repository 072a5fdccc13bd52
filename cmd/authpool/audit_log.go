package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool/audit"
)

func newAuditTailCommand(p *program) *cobra.Command {
	var (
		stateDir string
		count    int
		follow   bool
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the last lines of the audit log",
		Long: `Prints the last lines of the audit log: who did what, which session used which
credential, who was refused, and what happened to subscriptions. It reads the
files of the state folder, so that it works without a running serve, too. It
checks nothing: "authpool audit verify" does.`,
		Example: "  authpool audit tail -n 50\n  authpool audit tail -f --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 0 {
				return wrongf("-n %d: want 0 or more", count)
			}
			dir, err := p.auditDir(stateDir)
			if err != nil {
				return err
			}
			t := auditTail{dir: dir, show: p.showAuditLine}
			if asJSON {
				t.show = func(raw []byte) error { return p.printf("%s", raw) }
			}
			if err := t.last(count); err != nil || !follow {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return t.follow(ctx)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&stateDir, "state-dir", "", "state folder of the serve (default: $XDG_STATE_HOME/authpool)")
	flags.IntVarP(&count, "lines", "n", 20, "how many lines")
	flags.BoolVarP(&follow, "follow", "f", false, "go on with lines as they are written")
	flags.BoolVar(&asJSON, "json", false, "print the lines as they are in the file")
	return cmd
}

func newAuditVerifyCommand(p *program) *cobra.Command {
	var (
		stateDir, publicKey string
		asJSON              bool
	)
	cmd := &cobra.Command{
		Use:   "verify [FILE|DIR]",
		Short: "Find what was changed in the audit log",
		Long: `Reads the audit log, of the state folder or in a folder or file that is named, and
names the first line that was edited, removed, put in or moved, or that does not
bear the key's signature; then the exit code is 1.

Without --public-key the key is the folder's own key.pub, which proves nothing
against somebody who could change that as well. Keep a copy elsewhere: serve logs
it at every start. Of lines at the end that are missing head.json tells, which is
signed with every write; a log and a head.json that were both put back to an
earlier state verify, unless you have kept the number and hash that this prints.`,
		Example: "  authpool audit verify\n  authpool audit verify /backup/audit --public-key 4zvwRjXUKGfvwnParsHAS3HuSVzV5cA4McphgmoCtajS=",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return wrongf("%q takes one file or folder, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			var key ed25519.PublicKey
			var err error
			if publicKey != "" {
				if key, err = audit.ParsePublicKey(publicKey); err != nil {
					return wrongf("--public-key: %w", err)
				}
			}
			if len(args) == 1 {
				return p.auditVerify(args[0], key, asJSON)
			}
			dir, err := p.auditDir(stateDir)
			if err != nil {
				return err
			}
			return p.auditVerify(dir, key, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&stateDir, "state-dir", "", "state folder of the serve (default: $XDG_STATE_HOME/authpool)")
	flags.StringVar(&publicKey, "public-key", "", "the key that must have signed it (default: key.pub beside the log)")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// auditDir is the audit log of the state folder that the flag and the environment
// name.
func (p *program) auditDir(stateDir string) (string, error) {
	dir, err := statedir.Path(stateDir, p.getenv)
	if err != nil {
		return "", wrongUseError{err}
	}
	dir = filepath.Join(dir, auditFolder)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no audit log in %s: name the state folder of the serve by --state-dir", dir)
	}
	return dir, nil
}

func (p *program) auditVerify(path string, key ed25519.PublicKey, asJSON bool) error {
	r, err := audit.Verify(path, key)
	if err != nil {
		return err
	}
	if asJSON {
		return p.printJSON(r)
	}
	if r.Lines == 0 {
		err = p.printf("the audit log has no lines yet; its key is %s\n", r.PublicKey)
		return errors.Join(err, p.warnOfTheEnd(r))
	}
	if err := p.printf("%s in %s are as they were written: %d to %d, signed by %s\nthe last hash is %s\n",
		plural(int64(r.Lines), "line"), plural(int64(r.Files), "file"), r.First, r.Last, r.PublicKey, r.LastHash); err != nil {
		return err
	}
	if r.Unsigned > 0 {
		err = p.printf("no signature covers the last %d yet\n", r.Unsigned)
	}
	if r.Torn {
		err = errors.Join(err, p.printf("half a line follows: a serve is writing it, or was killed\n"))
	}
	return errors.Join(err, p.warnOfTheEnd(r))
}

// warnOfTheEnd says so when nothing tells that a file is whole.
func (p *program) warnOfTheEnd(r audit.Report) error {
	if r.HeadChecked {
		return nil
	}
	return p.printf("this file is not the last one of its folder: that no lines are missing at its end, the whole folder tells\n")
}

// showAuditLine prints a line for people, in printable ASCII.
func (p *program) showAuditLine(raw []byte) error {
	line, err := audit.ParseLine(raw)
	if err != nil {
		return p.printf("%s\n", strconv.QuoteToASCII(string(bytes.TrimSuffix(raw, []byte("\n")))))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %d %s %s", logWord(line.Time), line.Seq, logWord(string(line.Kind)), logWord(line.Actor))
	for _, name := range slices.Sorted(maps.Keys(line.Fields)) {
		fmt.Fprintf(&text, " %s=%s", logWord(name), logWord(line.Fields[name]))
	}
	return p.printf("%s\n", text.String())
}

// logWord is s, quoted when anything in it could be taken for something else.
func logWord(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == '\\'
	}) < 0
	if plain {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// followEvery is how often the files are looked at for more lines.
const followEvery = 250 * time.Millisecond

// auditTail reads the end of a log that may be written meanwhile.
type auditTail struct {
	dir  string
	show func(raw []byte) error

	file string // the one that was read last
	at   int64  // up to there
}

// last prints the last n lines and remembers where they end.
func (t *auditTail) last(n int) error {
	names, err := audit.List(t.dir)
	if err != nil {
		return fmt.Errorf("cannot read the audit log: %w", err)
	}
	var kept [][]byte
	for _, name := range slices.Backward(names) {
		lines, size, err := readLines(filepath.Join(t.dir, name), 0)
		if errors.Is(err, fs.ErrNotExist) {
			break // removed for room; so are those before
		}
		if err != nil {
			return err
		}
		if t.file == "" {
			t.file, t.at = name, size
		}
		lines = lines[max(0, len(lines)-(n-len(kept))):]
		kept = append(lines, kept...)
		if len(kept) >= n {
			break
		}
	}
	return t.showAll(kept)
}

func (t *auditTail) showAll(lines [][]byte) error {
	for _, raw := range lines {
		if err := t.show(raw); err != nil {
			return err
		}
	}
	return nil
}

// follow prints what is written from now on, until ctx ends.
func (t *auditTail) follow(ctx context.Context) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		names, err := audit.List(t.dir)
		if err != nil {
			return fmt.Errorf("cannot read the audit log: %w", err)
		}
		for _, name := range names {
			if name < t.file {
				continue
			}
			if name > t.file {
				t.file, t.at = name, 0
			}
			lines, size, err := readLines(filepath.Join(t.dir, name), t.at)
			if err != nil {
				return err
			}
			t.at = size
			if err := t.showAll(lines); err != nil {
				return err
			}
		}
	}
}

// readLines reads the whole lines of a file from an offset on, and where they end.
func readLines(path string, from int64) (lines [][]byte, end int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, from, fmt.Errorf("cannot read the audit log: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.NewSectionReader(f, from, 1<<40))
	if err != nil {
		return nil, from, fmt.Errorf("cannot read the audit log: %w", err)
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	return slices.Collect(bytes.Lines(text)), from + int64(len(text)), nil
}
