package main

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestStopOnSignals is which signals cut a stop short that takes ten seconds.
func TestStopOnSignals(t *testing.T) {
	f := func(name string, after time.Duration, sig os.Signal, want error, took time.Duration) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				signals := make(chan os.Signal, 1)
				time.AfterFunc(after, func() { signals <- sig })
				began := time.Now()
				err := stopOn(signals, func() error {
					time.Sleep(10 * time.Second)
					return nil
				})
				if !errors.Is(err, want) || time.Since(began) != took {
					t.Errorf("stopOn = %v after %s, want %v after %s", err, time.Since(began), want, took)
				}
				time.Sleep(10 * time.Second) // what stop began ends with the process
			})
		})
	}
	f("the same one once more", 0, syscall.SIGTERM, nil, 10*time.Second)
	f("passed on by npm", 50*time.Millisecond, syscall.SIGINT, nil, 10*time.Second)
	f("asked again", time.Second, syscall.SIGTERM, errImpatient, time.Second)
	f("a reload", time.Second, syscall.SIGHUP, nil, 10*time.Second)
}
