package usage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// progressName is the file that says what of the journal has been counted.
const progressName = "progress.json"

// progress is the content of that file. It may lag behind: what was counted since
// is sent again and answered as a duplicate. A writer's id and base are on disk
// before they are used, and so is a life, and that one begins to send.
type progress struct {
	Version int `json:"version"`
	// Writer is the id of the folder, random, made with it. Every
	// subscription's numbers start under it.
	Writer        string                 `json:"writer"`
	Life          string                 `json:"life"` // the last one that began
	Subscriptions map[string]subProgress `json:"subscriptions"`
}

// subProgress is how far one subscription has been counted. The number that Redis
// sees is the journal's number less Base.
type subProgress struct {
	Writer  string `json:"writer,omitempty"` // its own one since it left the folder's
	Base    int64  `json:"base,omitempty"`
	Lives   Lives  `json:"lives"`   // after the journal's numbers; none: Life alone
	Applied int64  `json:"applied"` // the journal's number of the last event counted
	Time    int64  `json:"time"`    // when that was, epoch ms
	// Senders are those of Lives that had something counted. The last one may have,
	// since number Since was counted: it has reached Redis, and could tell no more.
	Senders []string `json:"senders,omitempty"`
	Since   int64    `json:"since,omitempty"`
}

// lives returns the subscription's lives. One that has none was new in life.
func (s *subProgress) lives(life string) Lives {
	if len(s.Lives) == 0 {
		return Lives{{life, s.Base}}
	}
	return s.Lives
}

const progressVersion = 1

// loadProgress reads the file in dir, or makes it with a new writer.
func loadProgress(dir string) (*progress, error) {
	path := filepath.Join(dir, progressName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		p := &progress{Version: progressVersion, Writer: newWriter(), Subscriptions: map[string]subProgress{}}
		if err := p.save(dir); err != nil {
			return nil, err
		}
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	var p progress
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): without it usage of the last hour may be counted twice; move the folder %s away to start anew", path, err, dir)
	}
	if p.Version != progressVersion || p.Writer == "" {
		return nil, fmt.Errorf("%s has version %d, this program knows %d: use the program that wrote it", path, p.Version, progressVersion)
	}
	if p.Subscriptions == nil {
		p.Subscriptions = map[string]subProgress{}
	}
	return &p, nil
}

// begin begins a life of the folder; last are its last numbers by subscription.
func (p *progress) begin(last map[string]int64) {
	was := p.Life
	p.Life = newLife()
	for name, number := range last {
		s := p.Subscriptions[name]
		s.Lives = s.lives(was)
		s.begin(p.Life, number)
		p.Subscriptions[name] = s
	}
}

// save replaces the file in dir, so that a crash leaves the old or the new one.
func (p *progress) save(dir string) error {
	data, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, progressName)
	if err := writeSynced(path+".tmp", data); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
