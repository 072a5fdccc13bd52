package embedded

import (
	"bytes"
	"fmt"
)

// renewAfter is how many keys may end before miniredis is renewed. It keeps the
// version of every key that it ever had, for WATCH, and never lets go of it: some
// 100 bytes for each of the thousands of keys that come and go a day.
const renewAfter = 20_000

// renew puts a fresh miniredis with the same keys in the place of the old one.
// The caller holds saving and has just brought the image up to date. Commands go
// on until the last step, which carries over what they wrote meanwhile. Those who
// wait for messages are disconnected: their clients connect and subscribe anew, as
// they do when a Redis restarts, and scripts are sent again when the fresh one does
// not know them.
func (s *Store) renew() error {
	var body bytes.Buffer
	for _, r := range s.image {
		body.Write(r.encoded)
	}
	fresh, err := newMini()
	if err != nil {
		return err
	}
	image, err := restore(fresh, body.Bytes(), len(s.image), wallClock())
	if err != nil {
		panic(fmt.Sprintf("BUG: the image cannot be read back: %v", err))
	}
	s.image, s.dead = image, 0

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flushed {
		fresh.FlushAll()
	}
	now := wallClock()
	for key := range s.dirty {
		fresh.Del(key)
		if r, ok := s.copyKey(key, now); ok {
			if _, err := restore(fresh, r.encoded, 1, now); err != nil {
				panic(fmt.Sprintf("BUG: the record of %q cannot be read back: %v", key, err))
			}
		}
	}
	s.disconnectSubscribers()
	old := s.mini
	s.mini, s.server = fresh, fresh.Server()
	s.server.SetPreHook(s.inspect)
	old.Close()
	return nil
}

// disconnectSubscribers ends the connections that miniredis is to send messages
// to. mu is held.
func (s *Store) disconnectSubscribers() {
	s.conns.Lock()
	defer s.conns.Unlock()
	for l := range s.locals {
		if l.caller.subscribed {
			s.unsubscribe(l.caller)
			_ = l.conn.Close() // a pipe's Close reports nothing
		}
	}
}
