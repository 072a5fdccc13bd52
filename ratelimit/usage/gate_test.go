package usage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// gate is an Applier that can be shut, as when Redis is away.
type gate struct {
	usage.Applier
	shut atomic.Bool
}

var errShut = errors.New("the gate is shut")

func (g *gate) Apply(ctx context.Context, b usage.Batch) (usage.Result, error) {
	if g.shut.Load() {
		return usage.Result{}, errShut
	}
	return g.Applier.Apply(ctx, b)
}

// flushNothing brings everything added to the disk and fails to send it.
func flushNothing(t testing.TB, r *usage.Recorder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Flush(ctx); err == nil {
		t.Fatal("a flush through a shut gate succeeded")
	}
}

func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func moveFile(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
