package main

import (
	"io"
	"log/slog"

	"github.com/authpool/authpool/config"
)

// newLoggerFromConfig writes to w in the configured form, from the level on. The
// config's level and format have been checked.
func newLoggerFromConfig(c config.Log, level slog.Leveler, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func logLevel(c config.Log) (level slog.Level) {
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic("BUG: a log level got past the config's check: " + err.Error())
	}
	return level
}
