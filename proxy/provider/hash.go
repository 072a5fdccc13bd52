package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// volatile begins system texts that change from call to call of one
// conversation: a block of Claude Code that names its version and entry point
// (seen in 2.1.330).
const volatile = "x-anthropic-billing-header:"

// hashText takes a text into the session's hash. A conversation is told by its
// system prompt and the first message of its user; the model is not in it, so
// that a conversation may change it.
func (s *bodyScan) hashText(v *jsonscan.Value) {
	switch v.Path {
	case atSystem, atSystemText, atInstructions, atSystemPart, atSystemPartSnake, atPreamble:
		if v.Kind == jsonscan.String && !bytes.HasPrefix(v.Raw, []byte(volatile)) {
			add(s.system, v)
		}
	case atPrompt, atInput, atTitanText:
		if v.Kind == jsonscan.String && !s.hasUser {
			add(s.firstUser, v)
			s.hasUser = true
		}
	case atLoneMessage:
		if v.Kind == jsonscan.String {
			s.message.Reset()
			add(s.message, v)
			s.message.Sum(s.lone[:0])
			s.hasLone = true
		}
	case atMessage, atItem, atTurn, atPastMessage:
		if v.Kind == jsonscan.ObjectBegin {
			s.role.set(nil)
			s.message.Reset()
		}
		if v.Kind == jsonscan.ObjectEnd {
			s.endMessage(v.Path == atTurn)
		}
	case atMessageRole, atItemRole, atTurnRole, atPastRole:
		if v.Kind == jsonscan.String {
			s.role.set(v.Raw)
		}
	case atMessageContent, atMessageText, atItemContent, atItemText, atTurnText, atPastText:
		if v.Kind == jsonscan.String && !s.hasUser && !bytes.HasPrefix(v.Raw, []byte(volatile)) {
			add(s.message, v)
		}
	}
}

// endMessage decides, now that its role is known, what a message's text counts
// for. Gemini's turns without a role are the user's.
func (s *bodyScan) endMessage(turn bool) {
	if s.hasUser {
		return
	}
	var sum [sha256.Size]byte
	// Cohere v1 writes roles in capitals.
	switch role := s.role.bytes(); {
	case foldedEqual(role, "user"), len(role) == 0 && turn:
		s.firstUser.Write(s.message.Sum(sum[:0]))
		s.hasUser = true
	case foldedEqual(role, "system"), foldedEqual(role, "developer"):
		s.system.Write(s.message.Sum(sum[:0]))
	}
}

// add takes the beginning of a text and its whole length.
func add(h hash.Hash, v *jsonscan.Value) {
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(v.End-v.Start))
	h.Write(length[:])
	h.Write(v.Raw)
}

// sum returns what the conversation began with. The message of this turn is the
// first one only when there are none before it.
func (s *bodyScan) sum() []byte {
	if s.hasLone && !s.hasUser {
		s.firstUser.Write(s.lone[:])
	}
	sum := s.system.Sum(make([]byte, 0, 2*sha256.Size))
	return s.firstUser.Sum(sum)
}

// hashSession makes the id of a session that nothing names. The agent and the
// provider are in it, so that equal beginnings elsewhere are other sessions.
func hashSession(r *Request, began []byte) string {
	buf := make([]byte, 0, 256)
	buf = append(buf, r.Agent...)
	buf = append(buf, 0)
	buf = append(buf, r.Provider.Name...)
	buf = append(buf, 0)
	buf = append(buf, began...)
	return hashed(sha256.Sum256(buf))
}
