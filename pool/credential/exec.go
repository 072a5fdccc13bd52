package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// execTimeout bounds one run of an exec: reference's program.
	execTimeout = 5 * time.Second
	// execLinger bounds how long its output is waited for after its end, as a process
	// that it left behind may hold it open.
	execLinger = time.Second
)

// execWords are the program and its arguments, cut at spaces. There is no shell, and
// nothing is quoted.
func execWords(target string) (words []string, ok bool) {
	if strings.ContainsFunc(target, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, false
	}
	words = strings.Fields(target)
	return words, len(words) > 0 && filepath.IsAbs(words[0])
}

// run runs an exec: reference's program and gives what it writes to standard output,
// without its one trailing newline. It has no standard input, the environment of
// authpool, and at the end of its time is killed with its process group. What it writes to
// standard error is left out of the error, as a secret may be in it.
func run(ctx context.Context, words []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	var out bounded
	cmd := exec.CommandContext(ctx, words[0], words[1:]...) //nolint:gosec // the operator names it in the config file, and nobody else can
	cmd.Stdout = &out
	cmd.WaitDelay = execLinger
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	switch {
	case out.over:
		return "", fmt.Errorf("the program wrote more than %d bytes", maxSecret)
	case ctx.Err() != nil:
		return "", fmt.Errorf("the program did not end in %v: %w", execTimeout, ctx.Err())
	case errors.Is(err, exec.ErrWaitDelay):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the one that was left, if it is of the group still
		return "", errors.New("the program left another behind that holds its standard output open")
	case err != nil:
		return "", fmt.Errorf("the program failed (%w); run it by hand to see why", err)
	}
	text := strings.TrimSuffix(out.text.String(), "\n")
	return strings.TrimSuffix(text, "\r"), nil
}

// bounded keeps what a secret may have, and refuses more.
type bounded struct {
	text bytes.Buffer
	over bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.text.Len()+len(p) > maxSecret {
		b.over = true
		return 0, errors.New("too much") // ends the copying; the program meets a closed pipe
	}
	return b.text.Write(p)
}
